package kvm

import (
	"reflect"
	"testing"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// TestStructSizes holds the Go structs to sizeof() in linux/kvm.h and
// asm/kvm.h on x86-64.
func TestStructSizes(t *testing.T) {
	for _, c := range []struct {
		name string
		v    any
		size uintptr
	}{
		{"kvm_regs", Regs{}, sizeRegs},
		{"kvm_sregs", Sregs{}, sizeSregs},
		{"kvm_segment", Segment{}, 24},
		{"kvm_dtable", Descriptor{}, 16},
		{"kvm_fpu", FPU{}, sizeFPU},
		{"kvm_xsave", XSave{}, sizeXSave},
		{"kvm_xcrs", XCRS{}, sizeXCRS},
		{"kvm_debugregs", DebugRegs{}, sizeDebugRegs},
		{"kvm_vcpu_events", VCPUEvents{}, sizeEvents},
		{"kvm_lapic_state", LAPICState{}, sizeLAPIC},
		{"kvm_translation", translation{}, sizeTranslate},
		{"kvm_guest_debug", GuestDebug{}, sizeGuestDebug},
		{"kvm_cpuid_entry2", CPUIDEntry{}, cpuidEntrySize},
		{"kvm_msr_entry", MSREntry{}, msrEntrySize},
		{"kvm_msr_filter", msrFilter{}, sizeMSRFilter},
		{"kvm_msr_filter_range", msrFilterRange{}, 24},
		{"kvm_userspace_memory_region", region{}, sizeRegion},
		{"kvm_irq_level", irqLevel{}, sizeIRQLevel},
		{"kvm_irqchip", IRQChip{}, sizeIRQChip},
		{"kvm_irqfd", irqfd{}, sizeIRQFD},
		{"kvm_ioeventfd", ioeventfd{}, sizeIOEventFD},
		{"kvm_msi", msi{}, sizeMSI},
		{"kvm_clock_data", ClockData{}, sizeClock},
		{"kvm_enable_cap", enableCap{}, sizeEnableCap},
	} {
		if got := reflect.TypeOf(c.v).Size(); got != c.size {
			t.Errorf("struct %s: %d bytes in Go, %d in C", c.name, got, c.size)
		}
	}
	if runSize != 2352 || offSyncSregs != 448 || offSyncEvents != 760 {
		t.Errorf("run page: size %d, sregs at %d, events at %d", runSize, offSyncSregs, offSyncEvents)
	}
}

// TestStructOffsets does the same for offsetof() where padding could shift a
// field.
func TestStructOffsets(t *testing.T) {
	for _, c := range []struct {
		v     any
		field string
		off   uintptr
	}{
		{FPU{}, "FCW", 128}, {FPU{}, "FTWX", 132}, {FPU{}, "LastOpcode", 134}, {FPU{}, "LastIP", 136},
		{FPU{}, "XMM", 152}, {FPU{}, "MXCSR", 408},
		{Sregs{}, "GDT", 192}, {Sregs{}, "CR0", 224}, {Sregs{}, "EFER", 264}, {Sregs{}, "InterruptBitmap", 280},
		{Segment{}, "Typ", 14}, {Segment{}, "Unusable", 22},
		{VCPUEvents{}, "I", 8}, {VCPUEvents{}, "N", 12}, {VCPUEvents{}, "SipiVector", 16}, {VCPUEvents{}, "Flags", 20},
		{VCPUEvents{}, "S", 24}, {VCPUEvents{}, "TripleFault", 28}, {VCPUEvents{}, "ExceptionHasPayload", 55},
		{VCPUEvents{}, "ExceptionPayload", 56},
		{ClockData{}, "Realtime", 16}, {ClockData{}, "HostTSC", 24},
		{ioeventfd{}, "addr", 8}, {ioeventfd{}, "fd", 20}, {ioeventfd{}, "flags", 24},
		{enableCap{}, "args", 8}, {msrFilter{}, "ranges", 8}, {msrFilterRange{}, "bitmap", 16},
		{XCRS{}, "Registers", 8}, {DebugRegs{}, "DR6", 32}, {GuestDebug{}, "DebugReg", 8},
		{translation{}, "Valid", 16}, {CPUIDEntry{}, "Edx", 24}, {MSREntry{}, "Data", 8},
		{irqfd{}, "resample", 12}, {IRQChip{}, "Chip", 8},
	} {
		f, ok := reflect.TypeOf(c.v).FieldByName(c.field)
		if !ok || f.Offset != c.off {
			t.Errorf("%T.%s at %d, want %d", c.v, c.field, f.Offset, c.off)
		}
	}
}

// TestRequestNumbers compares the requests with the values that a C compiler
// gives to the macros.
func TestRequestNumbers(t *testing.T) {
	for _, c := range []struct {
		r    request
		code uintptr
	}{
		{reqGetAPIVersion, 0xae00}, {reqCreateVM, 0xae01}, {reqGetMSRIndexList, 0xc004ae02},
		{reqCheckExtension, 0xae03}, {reqGetVCPUMmapSize, 0xae04}, {reqGetSupportedCPUID, 0xc008ae05},
		{reqCreateVCPU, 0xae41}, {reqSetMemoryRegion, 0x4020ae46}, {reqSetTSSAddr, 0xae47},
		{reqSetIdentityMapAddr, 0x4008ae48}, {reqCreateIRQChip, 0xae60}, {reqIRQLine, 0x4008ae61},
		{reqGetIRQChip, 0xc208ae62}, {reqSetIRQChip, 0x8208ae63}, {reqSetGSIRouting, 0x4008ae6a},
		{reqIRQFD, 0x4020ae76}, {reqIOEventFD, 0x4040ae79}, {reqSetClock, 0x4030ae7b}, {reqGetClock, 0x8030ae7c},
		{reqSignalMSI, 0x4020aea5}, {reqEnableCap, 0x4068aea3}, {reqSetMSRFilter, 0x4188aec6},
		{reqRun, 0xae80}, {reqGetRegs, 0x8090ae81}, {reqSetRegs, 0x4090ae82}, {reqGetSregs, 0x8138ae83},
		{reqSetSregs, 0x4138ae84}, {reqTranslate, 0xc018ae85}, {reqInterrupt, 0x4004ae86},
		{reqGetMSRs, 0xc008ae88}, {reqSetMSRs, 0x4008ae89}, {reqSetSignalMask, 0x4004ae8b},
		{reqGetFPU, 0x81a0ae8c}, {reqSetFPU, 0x41a0ae8d}, {reqGetLAPIC, 0x8400ae8e}, {reqSetLAPIC, 0x4400ae8f},
		{reqSetCPUID, 0x4008ae90}, {reqGetCPUID, 0xc008ae91}, {reqGetMPState, 0x8004ae98},
		{reqSetMPState, 0x4004ae99}, {reqNMI, 0xae9a}, {reqSetGuestDebug, 0x4048ae9b},
		{reqGetEvents, 0x8040ae9f}, {reqSetEvents, 0x4040aea0}, {reqGetDebugRegs, 0x8080aea1},
		{reqSetDebugRegs, 0x4080aea2}, {reqSetTSCKHz, 0xaea2}, {reqGetTSCKHz, 0xaea3},
		{reqGetXSave, 0x9000aea4}, {reqSetXSave, 0x5000aea5}, {reqGetXCRS, 0x8188aea6},
		{reqSetXCRS, 0x4188aea7}, {reqKVMClockCtrl, 0xaead},
	} {
		if c.r.code != c.code {
			t.Errorf("%s = %#x, want %#x", c.r.name, c.r.code, c.code)
		}
	}
}

// TestCapNumbers spot-checks gokvm's list against linux/kvm.h, and that every
// capability we name has its own number and a name of the header.
func TestCapNumbers(t *testing.T) {
	for c, n := range map[Cap]uint32{
		CapIRQChip: 0, CapSetGuestDebug: 23, CapIRQFD: 32, CapIOEventFD: 36, CapVCPUEvents: 41, CapHyperV: 44,
		CapDebugRegs: 50, CapSyncRegs: 74, CapSignalMSI: 77, CapIRQFDResample: 82, CapEnableCapVM: 98,
		CapHyperVSynIC: 123, CapX2APICAPI: 129, CapImmediateExit: 136, CapHyperVSynIC2: 148, CapHyperVCPUID: 167,
		CapX86UserSpaceMSR: 188, CapX86MSRFilter: 189, CapSysHyperVCPUID: 191, CapSetGuestDebug2: 195,
		CapExitHypercall: 201, CapExitOnEmulationFailure: 204, CapDisableQuirks2: 213, CapX86TripleFaultEvent: 218,
		CapX86NotifyVMExit: 219,
	} {
		if uint32(c) != n {
			t.Errorf("%v = %d, want %d", c, uint32(c), n)
		}
	}
	seen := map[string]bool{}
	for c, s := range capNames {
		if seen[s] || c.String() != s {
			t.Errorf("capability %d: name %q, twice %v", uint32(c), c.String(), seen[s])
		}
		seen[s] = true
	}
	if got := Cap(9999).String(); got != "KVM_CAP(9999)" {
		t.Errorf("unknown capability: %q", got)
	}
}

// TestRegressGokvmRoute: gokvm's routing entry is 24 bytes, the kernel's 48,
// so a table of two made the kernel read its second entry from behind the
// table. Ours is encoded here, at full length.
func TestRegressGokvmRoute(t *testing.T) {
	if n := reflect.TypeOf(gokvm.IRQRoutingEntry{}).Size(); n == routeSize {
		t.Errorf("gokvm's routing entry is right by now (%d bytes); use it", n)
	}
	b := encodeRoutes([]Route{
		{GSI: 4, Chip: ChipIOAPIC, Pin: 5},
		{GSI: 24, MSI: true, Addr: 0x1_FEE0_2000, Data: 0x41},
	})
	if len(b) != sizeRouting+2*routeSize {
		t.Fatalf("%d bytes", len(b))
	}
	want := make([]byte, len(b))
	want[0] = 2
	e := want[8:]
	e[0], e[4], e[16], e[20] = 4, 1, 2, 5
	e = want[8+48:]
	e[0], e[4] = 24, 2
	e[17], e[18], e[19], e[20], e[24] = 0x20, 0xE0, 0xFE, 1, 0x41
	if !reflect.DeepEqual(b, want) {
		t.Errorf("encoded\n% x, want\n% x", b, want)
	}
}

func TestCPUIDCodec(t *testing.T) {
	in := []CPUIDEntry{
		{Function: 1, Eax: 2, Ebx: 3, Ecx: 4, Edx: 5},
		{Function: 0xD, Index: 1, Flags: CPUIDSignificantIndex, Eax: 6, Edx: 0xFFFFFFFF},
	}
	b := encodeCPUID(in)
	if len(b) != 8+2*40 || b[0] != 2 {
		t.Fatalf("% x", b)
	}
	if out := decodeCPUID(b[8:], 2); !reflect.DeepEqual(in, out) {
		t.Errorf("%+v", out)
	}
}
