package kvm_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hvpost/hvpost/kvm"
	"github.com/hvpost/hvpost/kvm/bare"
	"github.com/hvpost/hvpost/kvm/kvmtest"
)

// TestStringIO moves 8 words through rep ins and rep outs. KVM may split the
// work over several exits; the guest must see one stream.
func TestStringIO(t *testing.T) {
	g := kvmtest.Guest(t, bare.Config{})
	must(t, g.Long(
		0xFC,                   // cld
		0x66, 0xBA, 0x10, 0x05, //        mov dx, 0x510
		0xBF, 0x00, 0x00, 0x04, 0x00, // mov edi, Data
		0xB9, 8, 0, 0, 0, //              mov ecx, 8
		0xF3, 0x66, 0x6D, //              rep insw
		0xBE, 0x00, 0x00, 0x04, 0x00, // mov esi, Data
		0xB9, 8, 0, 0, 0, //              mov ecx, 8
		0xF3, 0x66, 0x6F, //              rep outsw
		0xF4,
	))
	in := []byte("sixteen bytes...")
	left, most := in, 0
	for len(left) > 0 {
		e := run(t, g.VCPU, kvm.ExitIO)
		if e.IO.Out || e.IO.Size != 2 || e.IO.Port != 0x510 || len(e.IO.Data) > len(left) {
			t.Fatalf("%v, %d bytes left", e, len(left))
		}
		most = max(most, int(e.IO.Count))
		left = left[copy(e.IO.Data, left):]
	}
	if most < 2 {
		t.Error("rep ins never moved more than one word at a time")
	}
	var out []byte
	for len(out) < len(in) {
		e := run(t, g.VCPU, kvm.ExitIO)
		if !e.IO.Out || e.IO.Size != 2 || int(e.IO.Count)*2 != len(e.IO.Data) {
			t.Fatalf("%v", e)
		}
		out = append(out, e.IO.Data...)
	}
	run(t, g.VCPU, kvm.ExitHLT)
	ram := make([]byte, len(in))
	must(t, g.Mem.ReadAt(ram, bare.Data))
	if !bytes.Equal(ram, in) || !bytes.Equal(out, in) {
		t.Errorf("in RAM %q, out %q", ram, out)
	}
}

// TestMMIO reads and writes addresses without memory, in all widths.
func TestMMIO(t *testing.T) {
	g := kvmtest.Guest(t, bare.Config{})
	must(t, g.Long(
		0xBB, 0x00, 0x00, 0x00, 0x10, // mov ebx, 0x10000000
		0x48, 0x8B, 0x03, //              mov rax, [rbx]
		0x48, 0x89, 0x43, 0x08, //        mov [rbx+8], rax
		0x89, 0x43, 0x10, //              mov [rbx+16], eax
		0x66, 0x89, 0x43, 0x20, //        mov [rbx+32], ax
		0x88, 0x43, 0x31, //              mov [rbx+49], al
		0xF4,
	))
	e := run(t, g.VCPU, kvm.ExitMMIO)
	if e.MMIO.Write || e.MMIO.GPA != 0x10000000 || len(e.MMIO.Data) != 8 {
		t.Fatalf("%v", e)
	}
	val := []byte{1, 2, 3, 4, 5, 6, 7, 8}
	copy(e.MMIO.Data, val)
	for _, w := range []struct {
		gpa uint64
		n   int
	}{{0x10000008, 8}, {0x10000010, 4}, {0x10000020, 2}, {0x10000031, 1}} {
		e := run(t, g.VCPU, kvm.ExitMMIO)
		if !e.MMIO.Write || e.MMIO.GPA != w.gpa || !bytes.Equal(e.MMIO.Data, val[:w.n]) {
			t.Errorf("%v with % x, want %d bytes at %#x", e, e.MMIO.Data, w.n, w.gpa)
		}
	}
	run(t, g.VCPU, kvm.ExitHLT)
}

// msrGuest reads MSR 0x40000000, writes what it got plus 1 to 0x40000001 and
// stops. #GP is reported on port 0x0D, with the error code.
func msrGuest(t *testing.T, deny ...kvm.MSRRange) *bare.Guest {
	g := kvmtest.Guest(t, bare.Config{Deny: deny})
	const handler = bare.Code + 0x100
	code := append([]byte{
		0xB9, 0x00, 0x00, 0x00, 0x40, // mov ecx, 0x40000000
		0x0F, 0x32, //                    rdmsr
		0xFF, 0xC0, //                    inc eax
		0xFF, 0xC1, //                    inc ecx
		0x0F, 0x30, //                    wrmsr
		0xF4,
	}, make([]byte, 0x100)...)
	code = append(code[:handler-bare.Code],
		0x58,       // pop rax
		0xE7, 0x0D, // out 0x0D, eax
		0xF4,
	)
	must(t, g.Long(code...))
	must(t, g.Handler(13, handler))
	return g
}

func TestMSRExits(t *testing.T) {
	hyperv := kvm.MSRRange{Base: 0x40000000, Count: 0x200, Deny: kvm.DenyRead | kvm.DenyWrite}
	read := func(t *testing.T, g *bare.Guest) *kvm.Exit {
		e := run(t, g.VCPU, kvm.ExitRDMSR)
		if e.MSR.Index != 0x40000000 || e.MSR.Write || e.MSR.Reason != kvm.MSRReasonFilter {
			t.Fatalf("%v", e)
		}
		return e
	}
	write := func(t *testing.T, g *bare.Guest, val uint64) *kvm.Exit {
		e := run(t, g.VCPU, kvm.ExitWRMSR)
		if e.MSR.Index != 0x40000001 || !e.MSR.Write || e.MSR.Reason != kvm.MSRReasonFilter || e.MSR.Data != val {
			t.Fatalf("%v, want value %#x", e, val)
		}
		return e
	}
	fault := func(t *testing.T, g *bare.Guest) {
		e := run(t, g.VCPU, kvm.ExitIO)
		if e.IO.Port != 0x0D || binary.LittleEndian.Uint32(e.IO.Data) != 0 {
			t.Errorf("%v, want #GP(0)", e)
		}
		run(t, g.VCPU, kvm.ExitHLT)
	}
	t.Run("done", func(t *testing.T) {
		g := msrGuest(t, hyperv)
		read(t, g).CompleteRDMSR(0x0000_0005_0000_0041, true)
		write(t, g, 0x0000_0005_0000_0042).CompleteWRMSR(true)
		run(t, g.VCPU, kvm.ExitHLT)
	})
	t.Run("read-GP", func(t *testing.T) {
		g := msrGuest(t, hyperv)
		read(t, g).CompleteRDMSR(0, false)
		fault(t, g)
	})
	t.Run("write-GP", func(t *testing.T) {
		g := msrGuest(t, hyperv)
		read(t, g).CompleteRDMSR(7, true)
		write(t, g, 8).CompleteWRMSR(false)
		fault(t, g)
	})
	t.Run("last-of-range", func(t *testing.T) {
		g := msrGuest(t, kvm.MSRRange{Base: 0x3FFFFFFF, Count: 2, Deny: kvm.DenyRead},
			kvm.MSRRange{Base: 0x40000001, Count: 1, Deny: kvm.DenyWrite})
		read(t, g).CompleteRDMSR(1, true)
		write(t, g, 2).CompleteWRMSR(true)
		run(t, g.VCPU, kvm.ExitHLT)
	})
	t.Run("removed", func(t *testing.T) {
		g := msrGuest(t, hyperv)
		must(t, g.VM.SetMSRFilter())
		// Only KVM's own idea of these MSRs is left. Where it has none the
		// guest gets #GP; where it has one the two accesses go through.
		e, err := g.VCPU.Run()
		must(t, err)
		if e.Reason != kvm.ExitHLT && (e.Reason != kvm.ExitIO || e.IO.Port != 0x0D) {
			t.Errorf("%v", e)
		}
	})
}

func TestMSRFilterArguments(t *testing.T) {
	g := kvmtest.Unowned(t, bare.Config{})
	for _, r := range []kvm.MSRRange{
		{Base: 0, Count: 0, Deny: kvm.DenyRead},
		{Base: 0, Count: 12289, Deny: kvm.DenyRead},
		{Base: 0xFFFFFFFF, Count: 2, Deny: kvm.DenyRead},
		{Base: 0, Count: 1},
		{Base: 0, Count: 1, Deny: 4},
	} {
		if err := g.VM.SetMSRFilter(r); err == nil || !strings.Contains(err.Error(), "KVM_X86_SET_MSR_FILTER") {
			t.Errorf("%+v: error %v", r, err)
		}
	}
	if err := g.VM.SetMSRFilter(make([]kvm.MSRRange, 17)...); err == nil {
		t.Error("17 ranges taken")
	}
	must(t, g.VM.SetMSRFilter(kvm.MSRRange{Base: 0x40000000, Count: 12288, Deny: kvm.DenyRead}))
}

// TestTripleFault loads an empty IDT and traps.
func TestTripleFault(t *testing.T) {
	g := kvmtest.Guest(t, bare.Config{})
	must(t, g.Long(
		0x6A, 0, 0x6A, 0, // push 0, push 0
		0x0F, 0x01, 0x1C, 0x24, // lidt [rsp]
		0x0F, 0x0B, // ud2
	))
	run(t, g.VCPU, kvm.ExitShutdown)
}

// TestInternalError lets KVM emulate, for want of memory, what it cannot:
// an SSE2 store that has no emulation.
func TestInternalError(t *testing.T) {
	g := kvmtest.Guest(t, bare.Config{})
	must(t, g.Long(
		0xBB, 0x00, 0x00, 0x00, 0x10, // mov ebx, 0x10000000
		0x66, 0x0F, 0xC5, 0xC1, 0x00, // pextrw eax, xmm1, 0
		0x0F, 0xC2, 0x03, 0x00, //      cmpeqps xmm0, [rbx]
		0xF4,
	))
	e := run(t, g.VCPU, kvm.ExitInternalError)
	if e.Internal.Suberror != kvm.InternalEmulation {
		t.Errorf("%v", e)
	}
	// Newer kernels say which instruction: the first that this one lacks.
	if b := e.Internal.Instruction(); b != nil &&
		!bytes.HasPrefix(b, []byte{0x66, 0x0F, 0xC5}) && !bytes.HasPrefix(b, []byte{0x0F, 0xC2, 0x03}) {
		t.Errorf("%v: not an instruction of the guest", e)
	}
	t.Log(e)
}

// TestSingleStep walks three instructions, then runs on.
func TestSingleStep(t *testing.T) {
	g := kvmtest.Guest(t, bare.Config{})
	must(t, g.Long(
		0x90,             // nop
		0xB8, 1, 0, 0, 0, // mov eax, 1
		0xFF, 0xC0, // inc eax
		0xFF, 0xC0, // inc eax
		0xF4,
	))
	must(t, g.VCPU.SetGuestDebug(&kvm.GuestDebug{Control: kvm.DebugEnable | kvm.DebugSingleStep}))
	for _, pc := range []uint64{1, 6, 8} {
		e := run(t, g.VCPU, kvm.ExitDebug)
		if e.Debug.PC != bare.Code+pc || e.Debug.Exception != 1 || e.Debug.DR6&(1<<14) == 0 {
			t.Errorf("%v, want a step to %#x", e, bare.Code+pc)
		}
	}
	must(t, g.VCPU.SetGuestDebug(&kvm.GuestDebug{}))
	run(t, g.VCPU, kvm.ExitHLT)
	r, err := g.VCPU.Regs()
	must(t, err)
	if r.RAX != 3 {
		t.Errorf("RAX %d", r.RAX)
	}
}

// skipEmulatedCPU ends a test of debugging that fails inside an emulated
// host: QEMU's TCG neither arms breakpoints at VMRUN nor intercepts int3. On
// hardware it lets the test go on, and fail.
func skipEmulatedCPU(t *testing.T, what string) {
	t.Helper()
	info, err := os.ReadFile("/proc/cpuinfo")
	if err == nil && bytes.Contains(info, []byte(" hypervisor")) && bytes.Contains(info, []byte(" svm")) {
		t.Skipf("SKIPPED, NOT TESTED: an emulated CPU without %s", what)
	}
}

// TestHardwareBreakpoint stops at an address, before its instruction.
func TestHardwareBreakpoint(t *testing.T) {
	g := kvmtest.Guest(t, bare.Config{})
	must(t, g.Long(
		0x31, 0xC0, // xor eax, eax
		0xFF, 0xC0, // inc eax
		0xFF, 0xC0, // inc eax
		0xF4,
	))
	d := kvm.GuestDebug{Control: kvm.DebugEnable | kvm.DebugHardwareBP}
	d.DebugReg[0] = bare.Code + 4
	d.DebugReg[7] = 1<<0 | 1<<1 | 1<<10 // L0, G0
	must(t, g.VCPU.SetGuestDebug(&d))
	e, err := g.VCPU.Run()
	must(t, err)
	if e.Reason == kvm.ExitHLT {
		skipEmulatedCPU(t, "hardware breakpoints")
	}
	if e.Reason != kvm.ExitDebug {
		t.Fatalf("%v", e)
	}
	if e.Debug.PC != bare.Code+4 || e.Debug.DR6&1 == 0 {
		t.Errorf("%v", e)
	}
	r, err := g.VCPU.Regs()
	must(t, err)
	if r.RAX != 1 {
		t.Errorf("RAX %d at the breakpoint", r.RAX)
	}
	must(t, g.VCPU.SetGuestDebug(&kvm.GuestDebug{}))
	run(t, g.VCPU, kvm.ExitHLT)
}

// TestSoftwareBreakpoint: int3 exits instead of trapping, RIP still on it.
func TestSoftwareBreakpoint(t *testing.T) {
	g := kvmtest.Guest(t, bare.Config{})
	must(t, g.Long(
		0x90, // nop
		0xCC, // int3
		0xF4,
	))
	const handler = bare.Code + 0x100
	must(t, g.Mem.WriteAt([]byte{0xE6, 0x83, 0xF4}, handler)) // out 0x83, al
	must(t, g.Handler(3, handler))
	must(t, g.VCPU.SetGuestDebug(&kvm.GuestDebug{Control: kvm.DebugEnable | kvm.DebugSoftwareBP}))
	e, err := g.VCPU.Run()
	must(t, err)
	if e.Reason == kvm.ExitInternalError && bytes.HasPrefix(e.Internal.Instruction(), []byte{0xCC}) {
		return // a KVM that interprets its guests and knows no int3
	}
	if e.Reason == kvm.ExitIO && e.IO.Port == 0x83 {
		skipEmulatedCPU(t, "an intercept of int3")
	}
	if e.Reason != kvm.ExitDebug || e.Debug.Exception != 3 || e.Debug.PC != bare.Code+1 {
		t.Errorf("%v", e)
	}
	r, err := g.VCPU.Regs()
	must(t, err)
	if r.RIP != bare.Code+1 {
		t.Errorf("RIP %#x", r.RIP)
	}
}

// TestIRQWindow waits, without interrupt chips, until the guest opens its
// window, and injects.
func TestIRQWindow(t *testing.T) {
	g := kvmtest.Guest(t, bare.Config{})
	must(t, g.Long(
		0xFA,       // cli
		0xE6, 0x80, // out 0x80, al
		0xFB,       // sti
		0xEB, 0xFE, // jmp $
	))
	const handler = bare.Code + 0x100
	must(t, g.Mem.WriteAt([]byte{0xE6, 0x81, 0xF4}, handler)) // out 0x81, al; hlt
	must(t, g.Handler(0x40, handler))
	e := run(t, g.VCPU, kvm.ExitIO)
	if e.IO.Port != 0x80 || g.VCPU.IFFlag() || g.VCPU.ReadyForInjection() {
		t.Errorf("%v, IF %v, ready %v", e, g.VCPU.IFFlag(), g.VCPU.ReadyForInjection())
	}
	g.VCPU.RequestInterruptWindow(true)
	run(t, g.VCPU, kvm.ExitIRQWindowOpen)
	if !g.VCPU.IFFlag() || !g.VCPU.ReadyForInjection() {
		t.Errorf("window open, IF %v, ready %v", g.VCPU.IFFlag(), g.VCPU.ReadyForInjection())
	}
	g.VCPU.RequestInterruptWindow(false)
	must(t, g.VCPU.Interrupt(0x40))
	if e := run(t, g.VCPU, kvm.ExitIO); e.IO.Port != 0x81 {
		t.Errorf("%v", e)
	}
	run(t, g.VCPU, kvm.ExitHLT)
}

// TestReadOnlyMemory: a write to read-only RAM is an MMIO exit, a read is not.
func TestReadOnlyMemory(t *testing.T) {
	g := kvmtest.Guest(t, bare.Config{RAMFlags: kvm.MemReadOnly})
	must(t, g.Real(
		0xA1, 0x00, 0x90, // mov ax, [0x9000]
		0xA3, 0x02, 0x90, // mov [0x9002], ax
		0xF4,
	))
	must(t, g.Mem.WriteAt([]byte{0x34, 0x12}, 0x9000))
	e := run(t, g.VCPU, kvm.ExitMMIO)
	if !e.MMIO.Write || e.MMIO.GPA != 0x9002 || !bytes.Equal(e.MMIO.Data, []byte{0x34, 0x12}) {
		t.Errorf("%v with % x", e, e.MMIO.Data)
	}
	run(t, g.VCPU, kvm.ExitHLT)
}

// TestHostFaults: what the host does wrong is an error that says where.
func TestHostFaults(t *testing.T) {
	g := kvmtest.Guest(t, bare.Config{})
	if err := g.VM.SetMemoryRegion(1, 0, 0x200001, 4096, 0); !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "slot 1") {
		t.Errorf("unaligned region: %v", err)
	}
	if err := g.VM.EnableCap(9999); !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "KVM_CAP(9999)") {
		t.Errorf("unknown capability: %v", err)
	}
	if _, err := g.VM.CreateVCPU(0); !errors.Is(err, unix.EEXIST) {
		t.Errorf("second processor 0: %v", err)
	}
	if err := g.VCPU.SetMPState(99); err == nil || !strings.Contains(err.Error(), "KVM_MP_STATE(99)") {
		t.Errorf("state 99: %v", err)
	}
	// A slot whose host memory is not mapped: KVM_RUN cannot go on.
	must(t, g.Real(0xF4))
	must(t, g.VM.SetMemoryRegion(0, 0, 0, 0, 0))
	must(t, g.VM.SetMemoryRegion(0, 0, 0, bare.Size, 0x10000))
	e, err := g.VCPU.Run()
	if err == nil {
		if e.Reason != kvm.ExitInternalError && e.Reason != kvm.ExitMMIO && e.Reason != kvm.ExitShutdown {
			t.Errorf("unmapped RAM: %v", e)
		}
	} else if !errors.Is(err, unix.EFAULT) || !strings.Contains(err.Error(), "KVM_RUN") {
		t.Errorf("unmapped RAM: %v", err)
	}
}
