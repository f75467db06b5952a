package kvm

import gokvm "github.com/bobuhiro11/gokvm/kvm"

// Register structs whose layout gokvm has right.
type (
	Regs        = gokvm.Regs        // general registers, KVM_GET_REGS
	Sregs       = gokvm.Sregs       // segment and control registers, KVM_GET_SREGS
	Segment     = gokvm.Segment     // one segment register of Sregs
	Descriptor  = gokvm.Descriptor  // GDTR or IDTR of Sregs
	DebugRegs   = gokvm.DebugRegs   // DR0-DR3, DR6, DR7
	XCRS        = gokvm.XCRS        // extended control registers
	XRC         = gokvm.XRC         // one of them
	VCPUEvents  = gokvm.VCPUEvents  // pending and injected events
	LAPICState  = gokvm.LAPICState  // the 1 KiB register page of the local APIC
	CPUIDEntry  = gokvm.CPUIDEntry2 // one CPUID leaf
	MSREntry    = gokvm.MSREntry    // one MSR with its value
	IRQChip     = gokvm.IRQChip     // PIC or IOAPIC state
	ClockData   = gokvm.ClockData   // kvmclock
	translation = gokvm.Translation
	region      = gokvm.UserspaceMemoryRegion
)

// CPUIDSignificantIndex in CPUIDEntry.Flags says that the leaf has subleaves
// and Index counts.
const CPUIDSignificantIndex = 1 << 0

// Chips of IRQChip.ChipID and of an IRQ route.
const (
	ChipPICMaster = 0
	ChipPICSlave  = 1
	ChipIOAPIC    = 2
)

// Flags of SetMemoryRegion.
const (
	MemLogDirtyPages = 1 << 0
	MemReadOnly      = 1 << 1 // guest writes become MMIO exits; needs CapReadOnlyMem
)

// Flags of ClockData.
const (
	ClockTSCStable = uint32(gokvm.TSCStable)
	ClockRealtime  = uint32(gokvm.Realtime)
	ClockHostTSC   = uint32(gokvm.HostTSC)
)

// Flags of VCPUEvents.Flags: which optional fields SetEvents takes.
const (
	EventValidNMIPending  = 1 << 0
	EventValidSIPIVector  = 1 << 1
	EventValidShadow      = 1 << 2
	EventValidSMM         = 1 << 3
	EventValidPayload     = 1 << 4
	EventValidTripleFault = 1 << 5
)

// Values of VCPUEvents.I.Shadow: the instruction before it holds interrupts
// off for one more.
const (
	ShadowMovSS = 1 << 0
	ShadowSTI   = 1 << 1
)

// An MPState is a value of KVM_GET_MP_STATE.
type MPState uint32

// States of a processor on x86.
const (
	MPRunnable      = MPState(gokvm.MPStateRunnable)
	MPUninitialized = MPState(gokvm.MPStateUninitialized) // waits for INIT and SIPI
	MPInitReceived  = MPState(gokvm.MPStateInitReceived)
	MPHalted        = MPState(gokvm.MPStateHalted)
	MPSIPIReceived  = MPState(gokvm.MPStateSipiReceived)
)

func (s MPState) String() string {
	return nameOf("KVM_MP_STATE", uint32(s), []string{
		"runnable", "uninitialized", "init-received", "halted", "sipi-received",
		"stopped", "check-stop", "operating", "load", "ap-reset-hold", "suspended"})
}

// FPU is struct kvm_fpu, the legacy FXSAVE state. KVM neither reads nor
// writes MXCSR here; it travels in XSave.
type FPU struct {
	FPR        [8][16]byte
	FCW        uint16
	FSW        uint16
	FTWX       uint8 // abridged, as FXSAVE has it
	_          uint8
	LastOpcode uint16
	LastIP     uint64
	LastDP     uint64
	XMM        [16][16]byte
	MXCSR      uint32
	_          uint32
}

// XSave is struct kvm_xsave: the XSAVE area in the layout of the host's CPUID
// leaf 0xD.
type XSave struct {
	Region [1024]uint32
}

// GuestDebug is the argument of KVM_SET_GUEST_DEBUG.
type GuestDebug struct {
	Control  DebugControl
	_        uint32
	DebugReg [8]uint64 // DR0-DR3 and DR7 for hardware breakpoints
}

// DebugControl is a set of KVM_GUESTDBG flags.
type DebugControl uint32

// Flags of GuestDebug.Control. Without DebugEnable all else is off.
const (
	DebugEnable     DebugControl = 0x00000001
	DebugSingleStep DebugControl = 0x00000002
	DebugSoftwareBP DebugControl = 0x00010000 // int3 exits
	DebugHardwareBP DebugControl = 0x00020000 // DebugReg is in force
	DebugInjectDB   DebugControl = 0x00040000
	DebugInjectBP   DebugControl = 0x00080000
	DebugBlockIRQ   DebugControl = 0x00100000 // no interrupts while stepping
)

// irqLevel is struct kvm_irq_level.
type irqLevel struct{ irq, level uint32 }

// irqfd is struct kvm_irqfd.
type irqfd struct {
	fd, gsi, flags, resample uint32
	_                        [16]byte
}

// ioeventfd is struct kvm_ioeventfd.
type ioeventfd struct {
	datamatch uint64
	addr      uint64
	length    uint32
	fd        int32
	flags     uint32
	_         [36]byte
}

// msi is struct kvm_msi.
type msi struct {
	addressLo, addressHi, data, flags, devid uint32
	_                                        [12]byte
}

// enableCap is struct kvm_enable_cap.
type enableCap struct {
	cap, flags uint32
	args       [4]uint64
	_          [64]byte
}
