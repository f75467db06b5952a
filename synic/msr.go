package synic

import "github.com/hvpost/hvpost/synic/hv"

// allows reports whether the guest may touch a register at all: whether its
// privilege, and its feature if it has one, were advertised.
func (p *Partition) allows(m hv.MSR) bool {
	switch m {
	case hv.MSRGuestOSID, hv.MSRHypercall:
		return p.has(hv.AccessHypercall)
	case hv.MSRVPIndex:
		return p.has(hv.AccessVPIndex)
	case hv.MSRReset:
		return p.has(hv.AccessReset)
	case hv.MSRVPRuntime:
		return p.has(hv.AccessVPRuntime)
	case hv.MSRTimeRefCount:
		return p.has(hv.AccessRefCounter)
	case hv.MSRReferenceTSC:
		return p.has(hv.AccessReferenceTSC)
	case hv.MSRTSCFrequency, hv.MSRAPICFrequency:
		return p.has(hv.AccessFrequency) && p.hasFeature(hv.FeatureFrequencyMSRs)
	case hv.MSREOI, hv.MSRICR, hv.MSRTPR:
		return p.has(hv.AccessAPIC) && p.cfg.APIC != nil
	case hv.MSRVPAssistPage:
		return p.has(hv.AccessAPIC)
	case hv.MSRSCONTROL, hv.MSRSVERSION, hv.MSRSIEFP, hv.MSRSIMP, hv.MSREOM:
		return p.has(hv.AccessSynIC)
	case hv.MSRGuestIdle:
		return p.has(hv.AccessGuestIdle)
	case hv.MSRCrashCtl:
		return p.hasFeature(hv.FeatureCrashMSRs)
	case hv.MSRTSCInvariantControl:
		return p.has(hv.AccessTSCInvariant)
	}
	switch {
	case hv.MSRSINT0 <= m && m <= hv.MSRSINT15:
		return p.has(hv.AccessSynIC)
	case hv.MSRSTIMER0Config <= m && m <= hv.MSRSTIMER3Count:
		return p.has(hv.AccessSyntheticTimers)
	case hv.MSRCrashP0 <= m && m <= hv.MSRCrashP4:
		return p.hasFeature(hv.FeatureCrashMSRs)
	}
	return false
}

// ReadMSR is the guest's RDMSR of a synthetic MSR. !ok means #GP: the register
// does not exist, is not the guest's to use, or cannot be read. A read of
// GUEST_IDLE blocks until the VP has an interrupt.
func (v *VP) ReadMSR(m hv.MSR) (val uint64, ok bool) {
	p := v.p
	if p.dead.Load() || !p.allows(m) {
		return 0, false
	}
	switch m {
	case hv.MSRVPIndex:
		return uint64(v.index), true
	case hv.MSRReset, hv.MSREOM:
		return 0, true
	case hv.MSRVPRuntime:
		if p.cfg.Runtime != nil {
			return p.cfg.Runtime(v.index), true
		}
		return p.cfg.Clock.Now(), true
	case hv.MSRTimeRefCount:
		return p.cfg.Clock.Now(), true
	case hv.MSRTSCFrequency:
		return p.cfg.Clock.TSCHz(), true
	case hv.MSRAPICFrequency:
		return p.cfg.Clock.APICHz(), true
	case hv.MSREOI:
		return 0, false // write only
	case hv.MSRICR:
		return p.cfg.APIC.ICR(v.index), true
	case hv.MSRTPR:
		return uint64(p.cfg.APIC.TPR(v.index)), true
	case hv.MSRSVERSION:
		return hv.SVERSION, true
	case hv.MSRGuestIdle:
		p.cfg.Idle(v.index)
		return 0, true
	case hv.MSRCrashCtl:
		return crashCapabilities, true
	case hv.MSRHypercall:
		return uint64(p.hypercallRegister()), true
	case hv.MSRGuestOSID, hv.MSRReferenceTSC, hv.MSRTSCInvariantControl:
		return p.readRegister(m), true
	}
	if hv.MSRCrashP0 <= m && m <= hv.MSRCrashP4 {
		return p.readRegister(m), true
	}
	return v.readRegister(m), true
}

// readRegister returns a register of the partition that is plain storage.
func (p *Partition) readRegister(m hv.MSR) uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch m {
	case hv.MSRGuestOSID:
		return p.osID
	case hv.MSRReferenceTSC:
		return uint64(p.tscRegister)
	case hv.MSRTSCInvariantControl:
		return p.tscInvariant
	default:
		return p.crash[m-hv.MSRCrashP0]
	}
}

// readRegister returns a register of the VP that is plain storage.
func (v *VP) readRegister(m hv.MSR) uint64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case m == hv.MSRVPAssistPage:
		return uint64(v.assist)
	case m == hv.MSRSCONTROL:
		return v.scontrol
	case m == hv.MSRSIEFP:
		return uint64(v.siefp)
	case m == hv.MSRSIMP:
		return uint64(v.simp)
	case m <= hv.MSRSINT15:
		return uint64(v.sint[m-hv.MSRSINT0])
	default:
		t := &v.timer[(m-hv.MSRSTIMER0Config)/2]
		if (m-hv.MSRSTIMER0Config)%2 == 0 {
			return uint64(t.config)
		}
		return t.count
	}
}

// WriteMSR is the guest's WRMSR of a synthetic MSR. !ok means #GP: the
// register does not exist, is not the guest's to use, is read only, or does
// not take the value. Bits that are RsvdP keep their value, which is zero.
func (v *VP) WriteMSR(m hv.MSR, val uint64) (ok bool) {
	p := v.p
	if p.dead.Load() || !p.allows(m) {
		return false
	}
	switch m {
	case hv.MSRGuestOSID:
		p.writeGuestOSID(val)
		return true
	case hv.MSRHypercall:
		return p.writeHypercall(hv.PageRegister(val))
	case hv.MSRReset:
		if val&hv.ResetRequest != 0 && p.cfg.OnReset != nil {
			p.cfg.OnReset(v.index)
		}
		return true
	case hv.MSRReferenceTSC:
		p.writeTSCRegister(hv.PageRegister(val))
		return true
	case hv.MSRICR:
		return p.cfg.APIC.SetICR(v.index, val)
	case hv.MSRTPR:
		return val <= 0xFF && p.cfg.APIC.SetTPR(v.index, uint8(val))
	case hv.MSRCrashCtl:
		v.writeCrashControl(val)
		return true
	case hv.MSRTSCInvariantControl:
		return p.writeTSCInvariant(val)
	case hv.MSRVPIndex, hv.MSRVPRuntime, hv.MSRTimeRefCount, hv.MSRTSCFrequency,
		hv.MSRAPICFrequency, hv.MSRSVERSION, hv.MSRGuestIdle:
		return false
	}
	if hv.MSRCrashP0 <= m && m <= hv.MSRCrashP4 {
		p.mu.Lock()
		p.crash[m-hv.MSRCrashP0] = val
		p.mu.Unlock()
		return true
	}
	var after deferred
	ok = v.writeRegister(m, val, &after)
	after.run()
	return ok
}

// writeRegister writes a register of the VP's SynIC or timers.
func (v *VP) writeRegister(m hv.MSR, val uint64, after *deferred) bool {
	switch m {
	case hv.MSRVPAssistPage:
		v.writePageRegister(&v.assist, &v.assistPage, hv.PageRegister(val))
		return true
	case hv.MSRSIEFP:
		v.writePageRegister(&v.siefp, &v.siefPage, hv.PageRegister(val))
		return true
	case hv.MSRSIMP:
		v.writePageRegister(&v.simp, &v.simPage, hv.PageRegister(val))
	case hv.MSREOI:
		v.p.cfg.APIC.EOI(v.index)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case m == hv.MSRSIMP, m == hv.MSREOI, m == hv.MSREOM:
		v.deliverAll(after)
	case m == hv.MSRSCONTROL:
		v.scontrol = val & hv.SCONTROLEnable
		v.deliverAll(after)
	case hv.MSRSINT0 <= m && m <= hv.MSRSINT15:
		return v.setSINT(uint8(m-hv.MSRSINT0), hv.SINT(val))
	default:
		t := &v.timer[(m-hv.MSRSTIMER0Config)/2]
		if (m-hv.MSRSTIMER0Config)%2 == 0 {
			return v.setTimerConfig(t, hv.TimerConfig(val), after)
		}
		v.setTimerCount(t, val, after)
	}
	return true
}

// writePageRegister writes SIMP, SIEFP or VP_ASSIST_PAGE. The register is
// written first: while the page is on its way, posters find it on the host.
func (v *VP) writePageRegister(reg *hv.PageRegister, o *overlay, val hv.PageRegister) {
	v.p.mu.Lock()
	defer v.p.mu.Unlock()
	v.mu.Lock()
	*reg = val.Clean()
	v.mu.Unlock()
	o.set(val.Enabled(), val.Base())
}

// setSINT writes a SINT register; false means #GP. The vectors below 16 are
// refused only if the source could interrupt: the reset value has vector 0.
func (v *VP) setSINT(n uint8, s hv.SINT) bool {
	if !s.Masked() && s.Vector() < hv.FirstVector {
		return false
	}
	keep := hv.SINTVectorMask | hv.SINTMasked | hv.SINTAutoEOI
	if v.p.hasFeature(hv.FeatureSINTPolling) {
		keep |= hv.SINTPolling
	}
	v.sint[n] = s & keep
	return true
}

func (p *Partition) hypercallRegister() hv.PageRegister {
	return hv.PageRegister(p.hypercall.Load())
}

// writeGuestOSID writes GUEST_OS_ID; 0 disables the hypercall page.
func (p *Partition) writeGuestOSID(id uint64) {
	p.mu.Lock()
	p.osID = id
	if id == 0 {
		p.setHypercallPage(p.hypercallRegister().Disabled())
	}
	p.mu.Unlock()
	p.syncDoorbells()
}

// writeHypercall writes HYPERCALL; false means #GP: the register is locked or
// the page lies outside the guest's address space.
func (p *Partition) writeHypercall(r hv.PageRegister) bool {
	p.mu.Lock()
	if p.hypercallRegister().Locked() || uint64(r.Base())&^p.gpaMask != 0 {
		p.mu.Unlock()
		return false
	}
	if p.osID == 0 {
		r = r.Disabled()
	}
	if p.hasFeature(hv.FeatureHypercallLock) {
		r = r.CleanLockable()
	} else {
		r = r.Clean()
	}
	p.setHypercallPage(r)
	p.mu.Unlock()
	p.syncDoorbells()
	return true
}

func (p *Partition) setHypercallPage(r hv.PageRegister) {
	p.hypercall.Store(uint64(r))
	p.hypercallPage.set(r.Enabled(), r.Base())
}

// writeTSCInvariant writes TSC_INVARIANT_CONTROL; false means #GP.
func (p *Partition) writeTSCInvariant(val uint64) bool {
	if val&^hv.TSCInvariantControl != 0 {
		return false
	}
	p.mu.Lock()
	old := p.tscInvariant
	p.tscInvariant = val
	p.mu.Unlock()
	if val != old && p.cfg.OnTSCInvariant != nil {
		p.cfg.OnTSCInvariant(val != 0)
	}
	return true
}

// GuestOSID returns the GUEST_OS_ID register: what the guest says it is, 0
// before it has said so.
func (p *Partition) GuestOSID() uint64 { return p.readRegister(hv.MSRGuestOSID) }
