package vmm

import (
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/hvpost/hvpost/kvm"
	"github.com/hvpost/hvpost/synic/hv"
)

// autoEOI delivers interrupts of AutoEOI SINTs. The guest never writes an EOI
// for those, so they must not pass through the in-kernel LAPIC, whose ISR bit
// would block every vector of that class for good. They are injected into the
// processor directly, when its interrupt window is open; the VP is kicked to
// look, and single-stepped while the window is closed. KVM's own window
// request is of no use here: with an in-kernel LAPIC it is honoured only
// while LVT0 accepts external interrupts.
type autoEOI struct {
	vp   *vp
	some atomic.Bool // a look without the lock

	mu       sync.Mutex
	pending  [4]uint64 // by vector
	stepping bool      // touched by the VP only
	lapic    kvm.LAPICState
}

// queue notes a vector and has the VP look. Any goroutine may call it.
func (a *autoEOI) queue(vector uint8) {
	a.mu.Lock()
	a.pending[vector/64] |= 1 << (vector % 64)
	a.some.Store(true)
	a.mu.Unlock()
	a.vp.cpu.Kick()
}

// highest returns the highest vector pending.
func (a *autoEOI) highest() (uint8, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := len(a.pending) - 1; i >= 0; i-- {
		if w := a.pending[i]; w != 0 {
			return uint8(i*64 + bits.Len64(w) - 1), true
		}
	}
	return 0, false
}

func (a *autoEOI) done(vector uint8) {
	a.mu.Lock()
	a.pending[vector/64] &^= 1 << (vector % 64)
	a.some.Store(a.pending != [4]uint64{})
	a.mu.Unlock()
}

// step runs on the VP between two entries: it injects what it can, and
// switches single-stepping on while something waits for the window.
func (a *autoEOI) step() {
	if !a.some.Load() && !a.stepping {
		return
	}
	if vector, ok := a.highest(); ok {
		injected, err := a.inject(vector)
		if err != nil {
			a.vp.fault("AutoEOI interrupt %#x: %v", vector, err)
			return
		}
		if injected {
			a.done(vector)
		}
	}
	if want := a.some.Load(); want != a.stepping {
		if err := a.vp.singleStep(want); err != nil {
			a.vp.fault("single-stepping to an interrupt window: %v", err)
			return
		}
		a.stepping = want
	}
}

// inject delivers vector if the processor can take an interrupt now.
func (a *autoEOI) inject(vector uint8) (bool, error) {
	cpu := a.vp.cpu
	regs, err := cpu.Regs()
	if err != nil {
		return false, err
	}
	const interruptFlag = 1 << 9
	if regs.RFLAGS&interruptFlag == 0 {
		return false, nil
	}
	ev, err := cpu.Events()
	if err != nil {
		return false, err
	}
	if ev.I.Inject != 0 || ev.I.Shadow != 0 || ev.E.Inject != 0 || ev.N.Inject != 0 {
		return false, nil
	}
	if err := cpu.GetLAPIC(&a.lapic); err != nil {
		return false, err
	}
	if vector>>4 <= processorPriority(&a.lapic) {
		return false, nil
	}
	ev.I.Inject, ev.I.Nr, ev.I.Soft = 1, vector, 0
	if err := cpu.SetEvents(&ev); err != nil {
		return false, err
	}
	// It may sit in HLT, from which only an interrupt that KVM knows of would
	// wake it.
	if state, err := cpu.MPState(); err != nil || state != kvm.MPHalted {
		return true, err
	}
	return true, cpu.SetMPState(kvm.MPRunnable)
}

// processorPriority returns the class below which the local APIC holds
// interrupts back: the higher of the task priority's and that of the vector
// in service (Intel SDM 3A 11.8.3.1).
func processorPriority(l *kvm.LAPICState) uint8 {
	class := l.Regs[apicTPR] >> 4
	if v := highestInService(l.Regs[:]); v >= 0 {
		class = max(class, uint8(v>>4))
	}
	return class
}

// singleStep makes every instruction exit, or no longer.
func (vp *vp) singleStep(on bool) error {
	var d kvm.GuestDebug
	if on {
		d.Control = kvm.DebugEnable | kvm.DebugSingleStep
	}
	return vp.cpu.SetGuestDebug(&d)
}

// InterruptAutoEOI implements synic.AutoEOIInterrupter.
func (m *Machine) InterruptAutoEOI(vp hv.VPIndex, vector uint8) error {
	if int(vp) >= len(m.vps) {
		return fmt.Errorf("no VP %d", vp)
	}
	m.interrupts.Add(1)
	m.vps[vp].autoEOI.queue(vector)
	return nil
}
