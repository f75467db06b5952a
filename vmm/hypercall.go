package vmm

import (
	"github.com/hvpost/hvpost/guest"
	"github.com/hvpost/hvpost/kvm"
	"github.com/hvpost/hvpost/synic"
)

const (
	cr0PE    = 1 << 0
	eferLMA  = 1 << 10
	rflagsVM = 1 << 17

	vectorUD = 6
)

// hypercall serves a write to the trap or the signal port. It reports false
// if the write does not come from the hypercall page: such a stray access
// falls to the port map like any other.
func (vp *vp) hypercall(port uint16) bool {
	regs, sregs := vp.cpu.SyncRegs(), vp.cpu.SyncSregs()
	if !vp.inHypercallPage(regs, sregs) {
		return false
	}
	kind := exitHypercall
	if port == signalPort {
		kind = exitSignal // one that no doorbell took
	}
	vp.exits.count(kind)
	r := synic.Registers{
		RAX: regs.RAX, RBX: regs.RBX, RCX: regs.RCX, RDX: regs.RDX,
		RSI: regs.RSI, RDI: regs.RDI, R8: regs.R8, RIP: regs.RIP,
	}
	env := synic.Environment{
		CPL:       vp.cpl(sregs),
		Protected: sregs.CR0&cr0PE != 0,
		VM86:      regs.RFLAGS&rflagsVM != 0,
		Long:      sregs.EFER&eferLMA != 0 && sregs.CS.L != 0,
		CSBase:    sregs.CS.Base,
		InPage:    true,
	}
	if !vp.m.partition.Trap(vp.index, uint8(port), env, &r) {
		vp.raiseUD()
		return true
	}
	// RIP has moved to the page's RET, so KVM will not complete the OUT by
	// skipping it a second time.
	regs.RAX, regs.RDX, regs.RIP = r.RAX, r.RDX, r.RIP
	vp.cpu.MarkDirty(kvm.SyncRegs)
	return true
}

// A pageWalk remembers where the hypercall page was found mapped: walking the
// guest's tables is a call into the kernel, and a guest calls from the same
// place for all its life. A guest that maps something else there and then
// writes the port fools only itself.
type pageWalk struct {
	cr3  uint64
	page uint64 // linear
	base guest.GPA
	ok   bool
}

func (vp *vp) inHypercallPage(regs *kvm.Regs, sregs *kvm.Sregs) bool {
	base, on := vp.m.partition.HypercallPage()
	if !on {
		return false
	}
	linear := sregs.CS.Base + regs.RIP
	walk := pageWalk{cr3: sregs.CR3, page: linear / guest.PageSize, base: base, ok: true}
	if vp.walk == walk {
		return true
	}
	gpa, mapped, err := vp.cpu.Translate(linear)
	if err != nil {
		vp.fault("translating RIP: %v", err)
		return false
	}
	if !mapped || !vp.m.partition.InHypercallPage(guest.GPA(gpa)) {
		return false
	}
	vp.walk = walk
	return true
}

// raiseUD injects #UD at the instruction that trapped. KVM completes the OUT
// on the next entry and would move RIP past it, so the completion is made to
// happen first and RIP is put back.
func (vp *vp) raiseUD() {
	regs, err := vp.cpu.Regs()
	if err == nil {
		rip := regs.RIP
		if err = vp.cpu.CompleteExit(); err == nil {
			regs, err = vp.cpu.Regs()
			regs.RIP = rip
		}
	}
	if err == nil {
		err = vp.cpu.SetRegs(&regs)
	}
	if err == nil {
		err = vp.raise(vectorUD)
	}
	if err != nil {
		vp.fault("injecting #UD: %v", err)
	}
}

// raise makes an exception without error code the next thing that happens to
// the processor.
func (vp *vp) raise(vector uint8) error {
	ev, err := vp.cpu.Events()
	if err != nil {
		return err
	}
	ev.E.Inject, ev.E.Nr, ev.E.HadErrorCode = 1, vector, 0
	return vp.cpu.SetEvents(&ev)
}

// cpl is the processor's privilege level.
func (vp *vp) cpl(s *kvm.Sregs) uint8 {
	if s.CR0&cr0PE == 0 {
		return 0
	}
	return s.SS.DPL
}
