package vmm

import (
	"errors"
	"fmt"

	"github.com/hvpost/hvpost/firmware/boot"
	"github.com/hvpost/hvpost/guest"
	"github.com/hvpost/hvpost/kvm"
	"github.com/hvpost/hvpost/synic"
	"github.com/hvpost/hvpost/synic/hv"
)

// A vp is one virtual processor. After the machine is built only its own
// goroutine touches it, apart from Kick, the counters, and autoEOI's queue.
type vp struct {
	m       *Machine
	index   hv.VPIndex
	cpu     *kvm.VCPU
	synic   *synic.VP
	exits   exitCounters
	autoEOI autoEOI
	walk    pageWalk
	final   VPState
}

// run is the VP's goroutine.
func (vp *vp) run() error {
	if err := vp.cpu.LockThread(); err != nil {
		err = fmt.Errorf("VP %d: %w", vp.index, err)
		vp.m.stop(Outcome{Cause: CauseFault, VP: vp.index, Detail: err.Error()})
		return err
	}
	defer vp.cpu.UnlockThread()
	defer func() { vp.final = vp.state() }()
	for !vp.m.stopping.Load() {
		exit, err := vp.cpu.Run()
		switch {
		case err == nil:
			vp.handle(exit)
		case errors.Is(err, kvm.ErrKicked):
			vp.exits.count(exitKick)
			vp.autoEOI.step()
		default:
			err = fmt.Errorf("VP %d: KVM_RUN: %w", vp.index, err)
			vp.m.stop(Outcome{Cause: CauseFault, VP: vp.index, Detail: err.Error()})
			return err
		}
	}
	return nil
}

// state reads where the VP stands, for people.
func (vp *vp) state() VPState {
	s := VPState{VP: vp.index, State: "unknown"}
	if mp, err := vp.cpu.MPState(); err == nil {
		s.State = mp.String()
	}
	regs, err := vp.cpu.Regs()
	if err != nil {
		s.Err = err.Error()
		return s
	}
	sregs, err := vp.cpu.Sregs()
	if err != nil {
		s.Err = err.Error()
		return s
	}
	s.RIP, s.RSP, s.RFlags = regs.RIP, regs.RSP, regs.RFLAGS
	s.CR0, s.CR2, s.CR3, s.CR4 = sregs.CR0, sregs.CR2, sregs.CR3, sregs.CR4
	s.CS, s.CPL = sregs.CS.Selector, vp.cpl(&sregs)
	if gpa, mapped, err := vp.cpu.Translate(sregs.CS.Base + regs.RIP); err == nil && mapped {
		var code [16]byte
		n := min(len(code), guest.PageSize-int(guest.GPA(gpa).Offset()))
		if vp.m.mem.ReadAt(code[:n], guest.GPA(gpa)) == nil {
			s.Code = fmt.Sprintf("% x", code[:n])
		}
	}
	return s
}

// apply puts the state that the loader asks for into VP 0.
func (vp *vp) apply(st boot.State) error {
	sregs, err := vp.cpu.Sregs()
	if err != nil {
		return err
	}
	sregs.CR0, sregs.CR3, sregs.CR4, sregs.EFER = st.CR0, st.CR3, st.CR4, st.EFER
	sregs.GDT = kvm.Descriptor{Base: uint64(st.GDT.Base), Limit: st.GDT.Limit}
	sregs.IDT = kvm.Descriptor{Base: uint64(st.IDT.Base), Limit: st.IDT.Limit}
	for _, s := range []struct {
		to   *kvm.Segment
		from boot.Segment
	}{
		{&sregs.CS, st.CS}, {&sregs.DS, st.DS}, {&sregs.ES, st.ES},
		{&sregs.FS, st.FS}, {&sregs.GS, st.GS}, {&sregs.SS, st.SS}, {&sregs.TR, st.TR},
	} {
		*s.to = segment(s.from)
	}
	if err := vp.cpu.SetSregs(&sregs); err != nil {
		return err
	}
	return vp.cpu.SetRegs(&kvm.Regs{
		RIP: st.RIP, RSP: st.RSP, RSI: st.RSI, RBX: st.RBX, RAX: st.RAX,
		RFLAGS: st.RFLAGS,
	})
}

// segment turns the loader's segment into KVM's.
func segment(s boot.Segment) kvm.Segment {
	return kvm.Segment{
		Base: s.Base, Limit: s.Limit, Selector: s.Selector, Typ: s.Type, DPL: s.DPL,
		Present: flag(s.Present), S: flag(s.S), L: flag(s.L), DB: flag(s.DB), G: flag(s.G),
		Unusable: flag(!s.Present),
	}
}

func flag(b bool) uint8 {
	if b {
		return 1
	}
	return 0
}
