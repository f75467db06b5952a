package kvm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
)

// testPage is a run area of three pages, as KVM has it on x86: kvm_run, port
// data, coalesced MMIO.
const testPage = 3 * 4096

type page []byte

func newPage(r Reason) page {
	p := make(page, testPage)
	binary.LittleEndian.PutUint32(p[offExitReason:], uint32(r))
	return p
}

func (p page) u8(off int, v uint8) page { p[offUnion+off] = v; return p }
func (p page) u16(off int, v uint16) page {
	binary.LittleEndian.PutUint16(p[offUnion+off:], v)
	return p
}
func (p page) u32(off int, v uint32) page {
	binary.LittleEndian.PutUint32(p[offUnion+off:], v)
	return p
}
func (p page) u64(off int, v uint64) page {
	binary.LittleEndian.PutUint64(p[offUnion+off:], v)
	return p
}

func ioPage(dir, size uint8, port uint16, count uint32, off uint64) page {
	return newPage(ExitIO).u8(0, dir).u8(1, size).u16(2, port).u32(4, count).u64(8, off)
}

// TestDecode gives every exit that is decoded a page of its own, with
// different values in all fields.
func TestDecode(t *testing.T) {
	words := func(p page, from, n int) page {
		for i := range n {
			p.u64(from+8*i, 0x1000+uint64(i))
		}
		return p
	}
	for _, c := range []struct {
		page  page
		check func(e *Exit) bool
		text  string
	}{
		{newPage(ExitUnknown).u64(0, 0x99), func(e *Exit) bool { return e.HardwareCode == 0x99 }, "hardware reason 0x99"},
		{newPage(ExitException).u32(0, 13).u32(4, 0x18),
			func(e *Exit) bool { return e.Exception == ExceptionExit{13, 0x18} }, "vector 13 error code 0x18"},
		{ioPage(1, 2, 0x3F8, 3, 4096),
			func(e *Exit) bool {
				return e.IO.Out && e.IO.Size == 2 && e.IO.Port == 0x3F8 && e.IO.Count == 3 &&
					len(e.IO.Data) == 6 && cap(e.IO.Data) == 6 && &e.IO.Data[0] == &e.page[4096]
			}, "out port 0x3f8, 3 of 2 bytes"},
		{ioPage(0, 4, 0xFFFF, 1024, 4096), func(e *Exit) bool { return !e.IO.Out && len(e.IO.Data) == 4096 }, "in port 0xffff, 1024 of 4 bytes"},
		{words(newPage(ExitHypercall).u64(0, 12), 8, 6).u64(64, 1),
			func(e *Exit) bool {
				return e.Hypercall.Nr == 12 && e.Hypercall.Args[0] == 0x1000 && e.Hypercall.Args[5] == 0x1005 && e.Hypercall.Flags == 1
			}, "nr 0xc"},
		{newPage(ExitDebug).u32(0, 1).u64(8, 0x8000).u64(16, 0x4FF0).u64(24, 0x400),
			func(e *Exit) bool { return e.Debug == DebugExit{1, 0x8000, 0x4FF0, 0x400} }, "exception 1 at 0x8000, DR6 0x4ff0"},
		{newPage(ExitHLT), func(*Exit) bool { return true }, "KVM_EXIT_HLT"},
		{newPage(ExitMMIO).u64(0, 0xFEC00000).u32(16, 8).u8(20, 1),
			func(e *Exit) bool {
				return e.MMIO.GPA == 0xFEC00000 && e.MMIO.Write && len(e.MMIO.Data) == 8 && cap(e.MMIO.Data) == 8 && &e.MMIO.Data[0] == &e.page[40]
			}, "write 0xfec00000, 8 bytes"},
		{newPage(ExitMMIO).u64(0, 1<<40).u32(16, 1), func(e *Exit) bool { return !e.MMIO.Write && len(e.MMIO.Data) == 1 }, "read 0x10000000000, 1 bytes"},
		{newPage(ExitIRQWindowOpen), func(*Exit) bool { return true }, "KVM_EXIT_IRQ_WINDOW_OPEN"},
		{newPage(ExitShutdown), func(*Exit) bool { return true }, "KVM_EXIT_SHUTDOWN"},
		{newPage(ExitFailEntry).u64(0, 0x80000021).u32(8, 3),
			func(e *Exit) bool { return e.FailEntry == FailEntryExit{0x80000021, 3} }, "hardware reason 0x80000021 on CPU 3"},
		{newPage(ExitTPRAccess).u64(0, 0x1234).u32(8, 1),
			func(e *Exit) bool { return e.TPRAccess == TPRAccessExit{0x1234, true} }, "write at 0x1234"},
		{words(newPage(ExitInternalError).u32(0, 3).u32(4, 4), 8, 16),
			func(e *Exit) bool {
				return e.Internal.Suberror == InternalDeliveryEvent && e.Internal.NData == 4 && e.Internal.Data[3] == 0x1003 && e.Internal.Data[4] == 0
			}, "event delivery"},
		{newPage(ExitInternalError).u32(0, 1).u32(4, 3).u64(8, 1).u8(16, 4).u8(17, 0x66).u8(18, 0x0F).u8(19, 0x38).u8(20, 0x80),
			func(e *Exit) bool { return bytes.Equal(e.Internal.Instruction(), []byte{0x66, 0x0F, 0x38, 0x80}) }, "emulation failure at 66 0f 38 80"},
		{newPage(ExitInternalError).u32(0, 1).u32(4, 3).u64(8, 1).u8(16, 255),
			func(e *Exit) bool { return len(e.Internal.Instruction()) == 15 }, "emulation failure"},
		{newPage(ExitInternalError).u32(0, 1).u32(4, 1).u64(8, 1), func(e *Exit) bool { return e.Internal.Instruction() == nil }, "emulation failure"},
		{newPage(ExitSystemEvent).u32(0, SystemEventReset).u32(4, 2).u64(8, 7).u64(16, 8),
			func(e *Exit) bool {
				return e.SystemEvent.Type == SystemEventReset && e.SystemEvent.NData == 2 && e.SystemEvent.Data[1] == 8
			}, "type 2, data [0x7 0x8]"},
		{newPage(ExitIOAPICEOI).u8(0, 0x51), func(e *Exit) bool { return e.EOIVector == 0x51 }, "vector 0x51"},
		{words(newPage(ExitHyperV).u32(0, HyperVSynIC).u32(8, 0x40000080), 16, 6),
			func(e *Exit) bool {
				return e.HyperV.MSR == 0x40000080 && e.HyperV.Words == [5]uint64{0x1000, 0x1001, 0x1002}
			}, "type 1, MSR 0x40000080"},
		{words(newPage(ExitHyperV).u32(0, HyperVHcall), 8, 6),
			func(e *Exit) bool {
				return e.HyperV.MSR == 0 && e.HyperV.Words == [5]uint64{0x1000, 0x1001, 0x1002, 0x1003}
			}, "type 2"},
		{words(newPage(ExitHyperV).u32(0, HyperVSynDebug).u32(8, 0x400000F1), 16, 6),
			func(e *Exit) bool {
				return e.HyperV.MSR == 0x400000F1 && e.HyperV.Words == [5]uint64{0x1000, 0x1001, 0x1002, 0x1003, 0x1004}
			}, "type 3"},
		{newPage(ExitHyperV).u32(0, 77), func(e *Exit) bool { return e.HyperV.Words == [5]uint64{} }, "type 77"},
		{newPage(ExitRDMSR).u32(8, 4).u32(12, 0x40000000).u64(16, 5),
			func(e *Exit) bool { return e.MSR == MSRExit{0x40000000, false, 5, MSRReasonFilter} }, "MSR 0x40000000 (filter)"},
		{newPage(ExitWRMSR).u32(8, 3).u32(12, 0x40000001).u64(16, 0xFFFF),
			func(e *Exit) bool {
				return e.MSR == MSRExit{0x40000001, true, 0xFFFF, MSRReasonInvalid | MSRReasonUnknown}
			}, "MSR 0x40000001, value 0xffff (invalid|unknown)"},
		{newPage(ExitDirtyRingFull), func(*Exit) bool { return true }, "KVM_EXIT_DIRTY_RING_FULL"},
		{newPage(ExitAPResetHold), func(*Exit) bool { return true }, "KVM_EXIT_AP_RESET_HOLD"},
		{newPage(ExitBusLock), func(*Exit) bool { return true }, "KVM_EXIT_X86_BUS_LOCK"},
		{words(newPage(ExitXen).u32(0, 1).u32(8, 1).u32(12, 3).u64(16, 9), 32, 6),
			func(e *Exit) bool {
				return e.Xen == XenExit{1, 1, 3, 9, [6]uint64{0x1000, 0x1001, 0x1002, 0x1003, 0x1004, 0x1005}}
			}, "type 1, input 0x9"},
		{newPage(ExitNotify).u32(0, 1), func(e *Exit) bool { return e.NotifyFlags == 1 }, "flags 0x1"},
		{newPage(ExitMemoryFault).u64(0, 8).u64(8, 0x5000).u64(16, 4096),
			func(e *Exit) bool { return e.MemoryFault == MemoryFaultExit{8, 0x5000, 4096} }, "0x5000, 4096 bytes, flags 0x8"},
		{newPage(0xABCD), func(e *Exit) bool { return e.Reason == 0xABCD }, "KVM_EXIT(43981)"},
	} {
		reason := Reason(binary.LittleEndian.Uint32(c.page[offExitReason:]))
		binary.LittleEndian.PutUint16(c.page[offRunFlags:], uint16(FlagSMM))
		e := Exit{page: c.page}
		if err := e.decode(); err != nil {
			t.Errorf("%v: %v", reason, err)
			continue
		}
		if e.Reason != reason || e.Flags != FlagSMM || !c.check(&e) {
			t.Errorf("%v decoded wrongly: %+v", reason, e)
		}
		if s := e.String(); !strings.Contains(s, c.text) || !strings.HasPrefix(s, reason.String()) {
			t.Errorf("%v: text %q lacks %q", reason, s, c.text)
		}
	}
}

// TestDecodeMalformed: nothing outside the run area is ever handed out.
func TestDecodeMalformed(t *testing.T) {
	for name, p := range map[string]page{
		"size 0":             ioPage(1, 0, 0x80, 1, 4096),
		"size 3":             ioPage(1, 3, 0x80, 1, 4096),
		"size 8":             ioPage(1, 8, 0x80, 1, 4096),
		"count 0":            ioPage(1, 1, 0x80, 0, 4096),
		"direction 2":        ioPage(2, 1, 0x80, 1, 4096),
		"offset in kvm_run":  ioPage(1, 1, 0x80, 1, runSize-1),
		"offset at end":      ioPage(1, 1, 0x80, 1, testPage),
		"offset past end":    ioPage(1, 1, 0x80, 1, testPage+1),
		"offset 2^64-1":      ioPage(1, 1, 0x80, 1, 1<<64-1),
		"end past end":       ioPage(1, 4, 0x80, 2, testPage-7),
		"count 2^32-1":       ioPage(1, 4, 0x80, 1<<32-1, 4096),
		"MMIO of 0":          newPage(ExitMMIO),
		"MMIO of 9":          newPage(ExitMMIO).u32(16, 9),
		"MMIO of 2^32-1":     newPage(ExitMMIO).u32(16, 1<<32-1),
		"17 words of error":  newPage(ExitInternalError).u32(4, 17),
		"2^32-1 event words": newPage(ExitSystemEvent).u32(4, 1<<32-1),
		"short page":         newPage(ExitHLT)[:runSize-1],
		"no page":            nil,
	} {
		e := Exit{page: p}
		if err := e.decode(); !errors.Is(err, ErrRunPage) {
			t.Errorf("%s: error %v, exit %v", name, err, &e)
		}
	}
	// The last bytes are still inside.
	e := Exit{page: ioPage(1, 4, 0x80, 2, testPage-8)}
	if err := e.decode(); err != nil || len(e.IO.Data) != 8 {
		t.Errorf("access up to the end: %v, %d bytes", err, len(e.IO.Data))
	}
}

func TestCompleteMSR(t *testing.T) {
	e := Exit{page: newPage(ExitRDMSR)}
	if err := e.decode(); err != nil {
		t.Fatal(err)
	}
	e.CompleteRDMSR(0x1122334455667788, true)
	if e.page[offUnion] != 0 || binary.LittleEndian.Uint64(e.page[offUnion+16:]) != 0x1122334455667788 {
		t.Errorf("completed read: % x", e.page[offUnion:offUnion+24])
	}
	e.CompleteRDMSR(0, false)
	if e.page[offUnion] != 1 {
		t.Error("failed read: no error for the guest")
	}
	mustPanic(t, func() { e.CompleteWRMSR(true) })

	e = Exit{page: newPage(ExitWRMSR).u8(0, 1)}
	if err := e.decode(); err != nil {
		t.Fatal(err)
	}
	e.CompleteWRMSR(true)
	if e.page[offUnion] != 0 {
		t.Error("completed write: error left over")
	}
	e.CompleteWRMSR(false)
	if e.page[offUnion] != 1 {
		t.Error("failed write: no error for the guest")
	}
	mustPanic(t, func() { e.CompleteRDMSR(0, true) })
}

func mustPanic(t *testing.T, f func()) {
	t.Helper()
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	f()
}

func TestReasonNames(t *testing.T) {
	for r, name := range map[Reason]string{
		ExitUnknown: "KVM_EXIT_UNKNOWN", ExitIO: "KVM_EXIT_IO", ExitDebug: "KVM_EXIT_DEBUG", ExitHLT: "KVM_EXIT_HLT",
		ExitMMIO: "KVM_EXIT_MMIO", ExitIRQWindowOpen: "KVM_EXIT_IRQ_WINDOW_OPEN", ExitShutdown: "KVM_EXIT_SHUTDOWN",
		ExitFailEntry: "KVM_EXIT_FAIL_ENTRY", ExitIntr: "KVM_EXIT_INTR", ExitSetTPR: "KVM_EXIT_SET_TPR",
		ExitTPRAccess: "KVM_EXIT_TPR_ACCESS", ExitNMI: "KVM_EXIT_NMI", ExitInternalError: "KVM_EXIT_INTERNAL_ERROR",
		ExitSystemEvent: "KVM_EXIT_SYSTEM_EVENT", ExitIOAPICEOI: "KVM_EXIT_IOAPIC_EOI", ExitHyperV: "KVM_EXIT_HYPERV",
		ExitRDMSR: "KVM_EXIT_X86_RDMSR", ExitWRMSR: "KVM_EXIT_X86_WRMSR", ExitDirtyRingFull: "KVM_EXIT_DIRTY_RING_FULL",
		ExitAPResetHold: "KVM_EXIT_AP_RESET_HOLD", ExitBusLock: "KVM_EXIT_X86_BUS_LOCK", ExitXen: "KVM_EXIT_XEN",
		ExitNotify: "KVM_EXIT_NOTIFY", ExitMemoryFault: "KVM_EXIT_MEMORY_FAULT", ExitHypercall: "KVM_EXIT_HYPERCALL",
		ExitException: "KVM_EXIT_EXCEPTION", 40: "KVM_EXIT(40)", 1 << 31: "KVM_EXIT(2147483648)",
	} {
		if got := r.String(); got != name {
			t.Errorf("reason %d: %q, want %q", uint32(r), got, name)
		}
	}
}

// FuzzExitDecode: whatever the page holds, decode ends with an error or with
// slices inside the page, and what the owner then does is safe.
func FuzzExitDecode(f *testing.F) {
	f.Add([]byte(ioPage(1, 2, 0x3F8, 3, 4096)[:offSyncRegs]), uint16(testPage))
	f.Add([]byte(ioPage(0, 4, 0x3F8, 1<<31, 1<<63)[:offSyncRegs]), uint16(testPage))
	f.Add([]byte(newPage(ExitMMIO).u32(16, 4)[:offSyncRegs]), uint16(runSize))
	f.Add([]byte(newPage(ExitInternalError).u32(0, 1).u32(4, 16).u64(8, 1).u8(16, 255)[:offSyncRegs]), uint16(testPage))
	f.Add([]byte(newPage(ExitSystemEvent).u32(4, 16)[:offSyncRegs]), uint16(0))
	f.Add([]byte(newPage(ExitHyperV).u32(0, 3)[:offSyncRegs]), uint16(testPage))
	for r := range Reason(45) {
		f.Add([]byte(newPage(r)[:offSyncRegs]), uint16(testPage))
	}
	f.Fuzz(func(t *testing.T, head []byte, size uint16) {
		p := make([]byte, size)
		copy(p, head)
		e := Exit{page: p}
		err := e.decode()
		if err != nil {
			if !errors.Is(err, ErrRunPage) {
				t.Fatalf("error %v", err)
			}
			return
		}
		_ = e.String()
		_ = e.Internal.Instruction()
		switch e.Reason {
		case ExitIO:
			if len(e.IO.Data) != int(e.IO.Size)*int(e.IO.Count) {
				t.Fatalf("%v with %d bytes", &e, len(e.IO.Data))
			}
			clear(e.IO.Data)
			if !bytes.Equal(p[:min(runSize, len(head))], head[:min(runSize, len(head))]) {
				t.Fatal("port data overlaps kvm_run")
			}
		case ExitMMIO:
			clear(e.MMIO.Data)
		case ExitRDMSR:
			e.CompleteRDMSR(1, false)
		case ExitWRMSR:
			e.CompleteWRMSR(true)
		}
	})
}
