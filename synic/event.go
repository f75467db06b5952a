package synic

import "github.com/hvpost/hvpost/synic/hv"

// acceptsEvents reports whether the SynIC and its event flags page are on. mu
// is held.
func (v *VP) acceptsEvents() bool {
	return !v.dead && v.scontrol&hv.SCONTROLEnable != 0 && v.siefp.Enabled()
}

// SignalEvent sets an event flag of a SINT of a VP, hv.VPAny included, and
// interrupts the VP if the flag was clear (TLFS "Event Flags"). A masked SINT
// takes no flag: hv.StatusInvalidSynICState, as for a SynIC that is off.
func (p *Partition) SignalEvent(vp hv.VPIndex, sint uint8, flag uint16) hv.Status {
	if !validSINT(sint) || flag >= hv.EventFlagCount {
		return hv.StatusInvalidParameter
	}
	if p.dead.Load() {
		return hv.StatusInvalidPartitionState
	}
	v := p.target(vp, (*VP).acceptsEvents)
	if v == nil {
		return hv.StatusInvalidVPIndex
	}
	var after deferred
	st := v.signal(sint, flag, &after)
	after.run()
	return st
}

func (v *VP) signal(sint uint8, flag uint16, after *deferred) hv.Status {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.acceptsEvents() || v.sint[sint].Masked() {
		return hv.StatusInvalidSynICState
	}
	off, mask := hv.EventFlagWord(sint, flag)
	if v.siefPage.word(off).Or(mask)&mask == 0 {
		v.raise(sint, after)
	}
	return hv.StatusSuccess
}

// validSINT reports whether n is a source that ports may use: 0 belongs to the
// hypervisor.
func validSINT(n uint8) bool { return n > 0 && n < hv.SINTCount }

// target returns the VP with the given index, or nil. For hv.VPAny it is one
// that ok holds for, taking turns, or nil.
func (p *Partition) target(vp hv.VPIndex, ok func(*VP) bool) *VP {
	if vp != hv.VPAny {
		return p.VP(vp)
	}
	start := p.nextVP.Add(1)
	for i := range p.vps {
		v := p.vps[(uint64(start)+uint64(i))%uint64(len(p.vps))]
		v.mu.Lock()
		usable := ok(v)
		v.mu.Unlock()
		if usable {
			return v
		}
	}
	return nil
}
