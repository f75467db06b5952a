package kvm_test

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hvpost/hvpost/kvm"
	"github.com/hvpost/hvpost/kvm/bare"
	"github.com/hvpost/hvpost/kvm/kvmtest"
)

// TestRegisterRoundTrips sets each class of registers to a value of its own
// and reads it back.
func TestRegisterRoundTrips(t *testing.T) {
	g := kvmtest.Unowned(t, bare.Config{IRQChip: true})
	v := g.VCPU
	must(t, g.Long(0xF4))

	regs := kvm.Regs{RAX: 1, RBX: 2, RCX: 3, RDX: 4, RSI: 5, RDI: 6, RSP: 7, RBP: 8, R8: 9, R9: 10, R10: 11, R11: 12,
		R12: 13, R13: 14, R14: 15, R15: 1 << 63, RIP: bare.Code, RFLAGS: 2}
	must(t, v.SetRegs(&regs))
	if got, err := v.Regs(); err != nil || got != regs {
		t.Errorf("Regs: %+v, %v", got, err)
	}

	s, err := v.Sregs()
	must(t, err)
	s.FS.Base, s.GS.Base, s.CR2 = 0x1122334455, 0x7000, 0xABC000
	must(t, v.SetSregs(&s))
	if got, err := v.Sregs(); err != nil || got != s {
		t.Errorf("Sregs: %+v, want %+v, %v", got, s, err)
	}

	f, err := v.FPU()
	must(t, err)
	f.FCW = 0x27F
	f.XMM[15] = [16]byte{15: 0xAA}
	must(t, v.SetFPU(&f))
	if got, err := v.FPU(); err != nil || got.FCW != f.FCW || got.XMM[15] != f.XMM[15] {
		t.Errorf("FPU: %+v, %v", got, err)
	}

	var x kvm.XSave
	must(t, v.GetXSave(&x))
	// The words of the legacy area and of the header that tell of x87 and SSE.
	const mxcsr, xstateBV = 24 / 4, 512 / 4
	if x.Region[mxcsr] != 0x1F80 {
		t.Errorf("XSave: MXCSR %#x", x.Region[mxcsr])
	}
	x.Region[xstateBV] |= 3
	x.Region[0], x.Region[mxcsr] = 0x17F, 0x1FA0
	must(t, v.SetXSave(&x))
	x = kvm.XSave{}
	must(t, v.GetXSave(&x))
	if x.Region[0]&0xFFFF != 0x17F || x.Region[mxcsr] != 0x1FA0 {
		t.Errorf("XSave: FCW %#x, MXCSR %#x", x.Region[0], x.Region[mxcsr])
	}
	if f, err := v.FPU(); err != nil || f.FCW != 0x17F {
		t.Errorf("FPU: FCW %#x, %v", f.FCW, err)
	}

	xcrs, err := v.XCRS()
	must(t, err)
	if xcrs.NrXRCS != 1 || xcrs.Registers[0].Value&1 == 0 {
		t.Errorf("XCRS: %+v", xcrs)
	}
	must(t, v.SetXCRS(&xcrs))

	d, err := v.DebugRegs()
	must(t, err)
	d.DB = [4]uint64{1, 2, 3, 4}
	must(t, v.SetDebugRegs(&d))
	if got, err := v.DebugRegs(); err != nil || got.DB != d.DB {
		t.Errorf("DebugRegs: %+v, %v", got, err)
	}

	ev, err := v.Events()
	must(t, err)
	ev.I.Shadow = kvm.ShadowSTI
	ev.N.Masked = 1
	ev.Flags |= kvm.EventValidShadow
	must(t, v.SetEvents(&ev))
	// SVM does not tell the two kinds of shadow apart.
	if got, err := v.Events(); err != nil || got.I.Shadow&kvm.ShadowSTI == 0 || got.N.Masked != 1 {
		t.Errorf("Events: %+v, %v", got, err)
	}

	for _, st := range []kvm.MPState{kvm.MPHalted, kvm.MPRunnable} {
		must(t, v.SetMPState(st))
		if got, err := v.MPState(); err != nil || got != st {
			t.Errorf("MPState %v, want %v, %v", got, st, err)
		}
	}

	var l kvm.LAPICState
	must(t, v.GetLAPIC(&l))
	const tpr = 0x80
	l.Regs[tpr] = 0x50
	must(t, v.SetLAPIC(&l))
	l.Regs[tpr] = 0
	must(t, v.GetLAPIC(&l))
	if l.Regs[tpr] != 0x50 {
		t.Errorf("LAPIC: TPR %#x", l.Regs[tpr])
	}

	if khz, err := v.TSCKHz(); err != nil || khz == 0 {
		t.Errorf("TSCKHz: %d, %v", khz, err)
	} else if err := v.SetTSCKHz(khz); err != nil {
		t.Errorf("SetTSCKHz to its own frequency: %v", err)
	}
}

func TestMSRs(t *testing.T) {
	sys := kvmtest.Need(t)
	list, err := sys.MSRIndexList()
	must(t, err)
	const star, lstar = 0xC0000081, 0xC0000082
	if !slices.Contains(list, star) || !slices.Contains(list, lstar) {
		t.Fatalf("the list of %d MSRs lacks STAR or LSTAR: %#x", len(list), list)
	}
	g := kvmtest.Unowned(t, bare.Config{})
	must(t, g.Long(0xF4))
	must(t, g.VCPU.SetMSR(lstar, 0xFFFF800000001000))
	if got, err := g.VCPU.MSR(lstar); err != nil || got != 0xFFFF800000001000 {
		t.Errorf("LSTAR %#x, %v", got, err)
	}
	// More than one request's worth, in one call: the kernel refuses 256.
	es := make([]kvm.MSREntry, 300)
	for i := range es {
		es[i] = kvm.MSREntry{Index: star, Data: uint64(i) << 32}
	}
	must(t, g.VCPU.SetMSRs(es))
	clear(es)
	for i := range es {
		es[i].Index = star
	}
	must(t, g.VCPU.MSRs(es))
	for i, e := range es {
		if e.Data != 299<<32 {
			t.Fatalf("entry %d: STAR %#x", i, e.Data)
		}
	}
	const none = 0x3FFFFFFF
	err = g.VCPU.SetMSRs([]kvm.MSREntry{{Index: star, Data: 5 << 32}, {Index: none}})
	if err == nil || !strings.Contains(err.Error(), "0x3fffffff") {
		t.Errorf("write of an unknown MSR: %v", err)
	}
	if got, err := g.VCPU.MSR(star); err != nil || got != 5<<32 {
		t.Errorf("STAR before the refused MSR: %#x, %v", got, err)
	}
	if _, err := g.VCPU.MSR(none); err == nil || !strings.Contains(err.Error(), "0x3fffffff") {
		t.Errorf("read of an unknown MSR: %v", err)
	}
}

func TestCPUID(t *testing.T) {
	sys := kvmtest.Need(t)
	leaves, err := sys.SupportedCPUID()
	must(t, err)
	if !slices.ContainsFunc(leaves, func(e kvm.CPUIDEntry) bool { return e.Function == 0 && e.Ebx != 0 }) {
		t.Fatalf("no leaf 0 among %d", len(leaves))
	}
	mine := []kvm.CPUIDEntry{{Function: 0x40000000, Eax: 0x40000001, Ebx: 0x11111111, Ecx: 0x22222222, Edx: 0x33333333}}
	leaves = slices.DeleteFunc(leaves, func(e kvm.CPUIDEntry) bool { return e.Function>>28 == 4 })
	g := kvmtest.Guest(t, bare.Config{CPUID: append(leaves, mine...)})
	got, err := g.VCPU.CPUID()
	must(t, err)
	if len(got) != len(leaves)+1 || !slices.Contains(got, mine[0]) {
		t.Errorf("%d leaves, want %d", len(got), len(leaves)+1)
	}
	must(t, g.Long(
		0xB8, 0, 0, 0, 0x40, // mov eax, 0x40000000
		0x31, 0xC9, //          xor ecx, ecx
		0x0F, 0xA2, //          cpuid
		0xF4,
	))
	run(t, g.VCPU, kvm.ExitHLT)
	r, err := g.VCPU.Regs()
	must(t, err)
	if r.RAX != 0x40000001 || r.RBX != 0x11111111 || r.RCX != 0x22222222 || r.RDX != 0x33333333 {
		t.Errorf("the guest sees %#x %#x %#x %#x", r.RAX, r.RBX, r.RCX, r.RDX)
	}
}

func TestTranslate(t *testing.T) {
	g := kvmtest.Unowned(t, bare.Config{})
	must(t, g.Long(0xF4))
	if gpa, ok, err := g.VCPU.Translate(0x12345678); err != nil || !ok || gpa != 0x12345678 {
		t.Errorf("mapped: %#x, %v, %v", gpa, ok, err)
	}
	if gpa, ok, err := g.VCPU.Translate(1 << 30); err != nil || ok {
		t.Errorf("not mapped: %#x, %v, %v", gpa, ok, err)
	}
}

// TestSyncRegs reads and changes registers through the run page alone.
func TestSyncRegs(t *testing.T) {
	g := kvmtest.Guest(t, bare.Config{})
	v := g.VCPU
	must(t, g.Long(
		0xE6, 0x80, // out 0x80, al
		0xE6, 0x81, // out 0x81, al
		0xF4,       //       hlt
		0xE6, 0x82, // out 0x82, al
		0xF4,
	))
	r, err := v.Regs()
	must(t, err)
	r.RAX, r.R15 = 0x11, 0x22
	must(t, v.SetRegs(&r))
	must(t, v.EnableSync(kvm.SyncRegs|kvm.SyncSregs|kvm.SyncEvents))
	if err := v.EnableSync(1 << 20); err == nil {
		t.Error("unknown register class taken")
	}

	run(t, v, kvm.ExitIO)
	sr := v.SyncRegs()
	if sr.RAX != 0x11 || sr.R15 != 0x22 || sr.RSP != bare.Stack {
		t.Errorf("after the first exit %+v", *sr)
	}
	want, err := v.Sregs()
	must(t, err)
	if !reflect.DeepEqual(*v.SyncSregs(), want) {
		t.Errorf("sregs %+v, want %+v", *v.SyncSregs(), want)
	}
	if e := v.SyncEvents(); e.I.Inject != 0 || e.E.Pending != 0 {
		t.Errorf("events %+v", *e)
	}

	// The change of a register that the instruction after the exit uses.
	sr.RAX = 0x55
	v.MarkDirty(kvm.SyncRegs)
	if v.Dirty() != kvm.SyncRegs {
		t.Errorf("dirty %#x", v.Dirty())
	}
	e := run(t, v, kvm.ExitIO)
	if e.IO.Port != 0x81 || e.IO.Data[0] != 0x55 {
		t.Errorf("%v with % x", e, e.IO.Data)
	}
	if v.Dirty() != 0 {
		t.Errorf("dirty %#x after Run", v.Dirty())
	}
	// A change without MarkDirty stays in the page.
	v.SyncRegs().RAX = 0x66
	run(t, v, kvm.ExitHLT)
	if v.SyncRegs().RAX != 0x55 {
		t.Errorf("RAX %#x", v.SyncRegs().RAX)
	}
	// A new RIP.
	v.SyncRegs().RIP = bare.Code + 5
	v.MarkDirty(kvm.SyncRegs)
	if e := run(t, v, kvm.ExitIO); e.IO.Port != 0x82 {
		t.Errorf("%v", e)
	}
	// A new RIP in the exit of an out: KVM must not skip anything then.
	v.SyncRegs().RIP = bare.Code
	v.MarkDirty(kvm.SyncRegs)
	if e := run(t, v, kvm.ExitIO); e.IO.Port != 0x80 {
		t.Errorf("%v after a jump back", e)
	}
	// A kick leaves the registers whole.
	v.Kick()
	if _, err := v.Run(); !errors.Is(err, kvm.ErrKicked) {
		t.Fatalf("kicked: %v", err)
	}
	if v.SyncRegs().RIP != bare.Code+2 || v.SyncRegs().RAX != 0x55 {
		t.Errorf("after a kick %+v", *v.SyncRegs())
	}
}

func TestClock(t *testing.T) {
	g := kvmtest.Unowned(t, bare.Config{})
	must(t, g.VM.SetClock(kvm.ClockData{Clock: 1e15}))
	var c kvm.ClockData
	must(t, g.VM.GetClock(&c))
	if c.Clock < 1e15 || c.Clock > 1e15+60e9 {
		t.Errorf("clock %d ns after setting 10^15", c.Clock)
	}
	if err := g.VCPU.KVMClockCtrl(); err != nil && !errors.Is(err, unix.EINVAL) {
		t.Errorf("KVMClockCtrl: %v", err)
	}
}

func TestIRQChipState(t *testing.T) {
	g := kvmtest.Unowned(t, bare.Config{IRQChip: true})
	c := kvm.IRQChip{ChipID: kvm.ChipIOAPIC}
	must(t, g.VM.GetIRQChip(&c))
	if base := uint64(c.Chip[0]) | uint64(c.Chip[1])<<8 | uint64(c.Chip[2])<<16 | uint64(c.Chip[3])<<24; base != 0xFEC00000 {
		t.Errorf("IOAPIC at %#x", base)
	}
	const redirect = 24 // first entry, after base, ioregsel, id, irr and pad
	c.Chip[redirect] = 0x77
	must(t, g.VM.SetIRQChip(&c))
	c.Chip[redirect] = 0
	must(t, g.VM.GetIRQChip(&c))
	if c.Chip[redirect] != 0x77 {
		t.Errorf("vector of pin 0: %#x", c.Chip[redirect])
	}
	if err := g.VM.GetIRQChip(&kvm.IRQChip{ChipID: 3}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("chip 3: %v", err)
	}
}

func TestNMI(t *testing.T) {
	g := kvmtest.Guest(t, bare.Config{IRQChip: true})
	const handler = bare.Code + 0x100
	must(t, g.Long(0xF4)) // the NMI ends the hlt
	must(t, g.Mem.WriteAt([]byte{0xE6, 0x82}, handler))
	must(t, g.Handler(2, handler))
	must(t, g.VCPU.NMI())
	if e := run(t, g.VCPU, kvm.ExitIO); e.IO.Port != 0x82 {
		t.Errorf("%v", e)
	}
}
