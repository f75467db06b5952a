package kvm

import (
	"fmt"
	"strings"
)

// A Reason says why KVM_RUN returned.
type Reason uint32

// Reasons of linux/kvm.h that x86 uses. Others are possible values too, and
// name themselves.
const (
	ExitUnknown       Reason = 0
	ExitException     Reason = 1
	ExitIO            Reason = 2
	ExitHypercall     Reason = 3
	ExitDebug         Reason = 4
	ExitHLT           Reason = 5
	ExitMMIO          Reason = 6
	ExitIRQWindowOpen Reason = 7
	ExitShutdown      Reason = 8
	ExitFailEntry     Reason = 9
	ExitIntr          Reason = 10
	ExitSetTPR        Reason = 11
	ExitTPRAccess     Reason = 12
	ExitNMI           Reason = 16
	ExitInternalError Reason = 17
	ExitSystemEvent   Reason = 24
	ExitIOAPICEOI     Reason = 26
	ExitHyperV        Reason = 27
	ExitRDMSR         Reason = 29
	ExitWRMSR         Reason = 30
	ExitDirtyRingFull Reason = 31
	ExitAPResetHold   Reason = 32
	ExitBusLock       Reason = 33
	ExitXen           Reason = 34
	ExitNotify        Reason = 37
	ExitMemoryFault   Reason = 39
)

var reasonNames = []string{
	"KVM_EXIT_UNKNOWN", "KVM_EXIT_EXCEPTION", "KVM_EXIT_IO", "KVM_EXIT_HYPERCALL",
	"KVM_EXIT_DEBUG", "KVM_EXIT_HLT", "KVM_EXIT_MMIO", "KVM_EXIT_IRQ_WINDOW_OPEN",
	"KVM_EXIT_SHUTDOWN", "KVM_EXIT_FAIL_ENTRY", "KVM_EXIT_INTR", "KVM_EXIT_SET_TPR",
	"KVM_EXIT_TPR_ACCESS", "KVM_EXIT_S390_SIEIC", "KVM_EXIT_S390_RESET", "KVM_EXIT_DCR",
	"KVM_EXIT_NMI", "KVM_EXIT_INTERNAL_ERROR", "KVM_EXIT_OSI", "KVM_EXIT_PAPR_HCALL",
	"KVM_EXIT_S390_UCONTROL", "KVM_EXIT_WATCHDOG", "KVM_EXIT_S390_TSCH", "KVM_EXIT_EPR",
	"KVM_EXIT_SYSTEM_EVENT", "KVM_EXIT_S390_STSI", "KVM_EXIT_IOAPIC_EOI", "KVM_EXIT_HYPERV",
	"KVM_EXIT_ARM_NISV", "KVM_EXIT_X86_RDMSR", "KVM_EXIT_X86_WRMSR", "KVM_EXIT_DIRTY_RING_FULL",
	"KVM_EXIT_AP_RESET_HOLD", "KVM_EXIT_X86_BUS_LOCK", "KVM_EXIT_XEN", "KVM_EXIT_RISCV_SBI",
	"KVM_EXIT_RISCV_CSR", "KVM_EXIT_NOTIFY", "KVM_EXIT_LOONGARCH_IOCSR", "KVM_EXIT_MEMORY_FAULT",
}

func (r Reason) String() string { return nameOf("KVM_EXIT", uint32(r), reasonNames) }

// An Exit is why a Run ended. Reason decides which of the other fields is
// set; the rest hold what an earlier exit left there.
type Exit struct {
	Reason Reason
	Flags  RunFlags

	IO           IOExit          // ExitIO
	MMIO         MMIOExit        // ExitMMIO
	MSR          MSRExit         // ExitRDMSR, ExitWRMSR
	Debug        DebugExit       // ExitDebug
	Internal     InternalExit    // ExitInternalError
	SystemEvent  SystemEventExit // ExitSystemEvent
	FailEntry    FailEntryExit   // ExitFailEntry
	HyperV       HyperVExit      // ExitHyperV
	Hypercall    HypercallExit   // ExitHypercall
	Xen          XenExit         // ExitXen
	TPRAccess    TPRAccessExit   // ExitTPRAccess
	MemoryFault  MemoryFaultExit // ExitMemoryFault, only with an error of KVM_RUN
	Exception    ExceptionExit   // ExitException
	EOIVector    uint8           // ExitIOAPICEOI
	NotifyFlags  uint32          // ExitNotify; bit 0: the guest's state is lost
	HardwareCode uint64          // ExitUnknown: the hardware's exit reason

	page []byte
}

// RunFlags is run->flags.
type RunFlags uint16

// Flags of every exit.
const (
	FlagSMM     RunFlags = 1 << 0 // in system management mode
	FlagBusLock RunFlags = 1 << 1
)

// An IOExit is an access to ports by in, out or their string forms.
type IOExit struct {
	Out   bool
	Size  uint8 // bytes of one access: 1, 2 or 4
	Port  uint16
	Count uint32 // accesses, more than 1 for rep ins and outs

	// Data is Count accesses of Size bytes, in the run area: what the guest
	// writes, or where to put what it reads before the next Run.
	Data []byte
}

// An MMIOExit is an access to an address without memory.
type MMIOExit struct {
	GPA   uint64
	Write bool

	// Data is the 1 to 8 bytes of the access, in the run page: what the guest
	// writes, or where to put what it reads before the next Run.
	Data []byte
}

// An MSRReason says why an MSR access exits.
type MSRReason uint32

func (r MSRReason) String() string {
	return flagNames(uint64(r), "invalid", "unknown", "filter")
}

// An MSRExit is an rdmsr or wrmsr that KVM leaves to userspace. It must be
// answered with CompleteRDMSR or CompleteWRMSR before the next Run.
type MSRExit struct {
	Index  uint32
	Write  bool
	Data   uint64 // what the guest writes
	Reason MSRReason
}

// A DebugExit is a single step or a breakpoint.
type DebugExit struct {
	Exception uint32 // 1: #DB, 3: #BP
	PC        uint64
	DR6       uint64
	DR7       uint64
}

// Suberrors of InternalExit.
const (
	InternalEmulation     = 1 // KVM cannot interpret an instruction
	InternalSimultaneous  = 2 // unexpected simultaneous exceptions
	InternalDeliveryEvent = 3 // exit while an event was delivered
	InternalUnexpected    = 4 // unexpected hardware exit
)

// An InternalExit is KVM giving up on the guest.
type InternalExit struct {
	Suberror uint32
	NData    int // valid words of Data
	Data     [16]uint64
}

// Instruction returns the bytes that KVM could not emulate, if it says so.
func (i *InternalExit) Instruction() []byte {
	// struct emulation_failure: flags, a length byte, up to 15 bytes.
	if i.Suberror != InternalEmulation || i.NData < 3 || i.Data[0]&1 == 0 {
		return nil
	}
	b := make([]byte, 16)
	for n := range 16 {
		b[n] = byte(i.Data[1+n/8] >> (8 * (n % 8)))
	}
	return b[1 : 1+min(int(b[0]), 15)]
}

// Types of SystemEventExit.
const (
	SystemEventShutdown = 1
	SystemEventReset    = 2
	SystemEventCrash    = 3
)

// A SystemEventExit is an event of the whole machine.
type SystemEventExit struct {
	Type  uint32
	NData int // valid words of Data
	Data  [16]uint64
}

// A FailEntryExit is a refusal of the hardware to enter the guest.
type FailEntryExit struct {
	HardwareReason uint64
	CPU            uint32
}

// Types of HyperVExit.
const (
	HyperVSynIC    = 1
	HyperVHcall    = 2
	HyperVSynDebug = 3
)

// A HyperVExit comes from KVM's own Hyper-V emulation, which stays off here.
type HyperVExit struct {
	Type uint32
	MSR  uint32 // SynIC, syndbg
	// Words are control, event page, message page of the SynIC; input, result
	// and two parameters of a hypercall; control, status, send page, receive
	// page and pending page of syndbg.
	Words [5]uint64
}

// A HypercallExit is a KVM hypercall passed on by CapExitHypercall.
type HypercallExit struct {
	Nr    uint64
	Args  [6]uint64
	Flags uint64
}

// A XenExit is a Xen hypercall.
type XenExit struct {
	Type     uint32
	LongMode uint32
	CPL      uint32
	Input    uint64
	Params   [6]uint64
}

// A TPRAccessExit reports an access to the task priority register.
type TPRAccessExit struct {
	RIP   uint64
	Write bool
}

// A MemoryFaultExit is a guest access that the host cannot resolve.
type MemoryFaultExit struct {
	Flags uint64
	GPA   uint64
	Size  uint64
}

// An ExceptionExit is an exception that KVM does not handle.
type ExceptionExit struct {
	Vector    uint32
	ErrorCode uint32
}

// String describes the exit on one line.
func (e *Exit) String() string {
	s := e.Reason.String()
	switch e.Reason {
	case ExitUnknown:
		s += fmt.Sprintf(" hardware reason %#x", e.HardwareCode)
	case ExitException:
		s += fmt.Sprintf(" vector %d error code %#x", e.Exception.Vector, e.Exception.ErrorCode)
	case ExitIO:
		s += fmt.Sprintf(" %s port %#x, %d of %d bytes", dir(e.IO.Out, "out", "in"), e.IO.Port, e.IO.Count, e.IO.Size)
	case ExitHypercall:
		s += fmt.Sprintf(" nr %#x", e.Hypercall.Nr)
	case ExitDebug:
		s += fmt.Sprintf(" exception %d at %#x, DR6 %#x", e.Debug.Exception, e.Debug.PC, e.Debug.DR6)
	case ExitMMIO:
		s += fmt.Sprintf(" %s %#x, %d bytes", dir(e.MMIO.Write, "write", "read"), e.MMIO.GPA, len(e.MMIO.Data))
	case ExitFailEntry:
		s += fmt.Sprintf(" hardware reason %#x on CPU %d", e.FailEntry.HardwareReason, e.FailEntry.CPU)
	case ExitTPRAccess:
		s += fmt.Sprintf(" %s at %#x", dir(e.TPRAccess.Write, "write", "read"), e.TPRAccess.RIP)
	case ExitInternalError:
		s += " " + nameOf("suberror", e.Internal.Suberror, []string{"", "emulation failure",
			"simultaneous exceptions", "event delivery", "unexpected exit reason"})
		if b := e.Internal.Instruction(); b != nil {
			s += fmt.Sprintf(" at % x", b)
		}
	case ExitSystemEvent:
		s += fmt.Sprintf(" type %d, data %#x", e.SystemEvent.Type, e.SystemEvent.Data[:e.SystemEvent.NData])
	case ExitIOAPICEOI:
		s += fmt.Sprintf(" vector %#x", e.EOIVector)
	case ExitHyperV:
		s += fmt.Sprintf(" type %d, MSR %#x, %#x", e.HyperV.Type, e.HyperV.MSR, e.HyperV.Words)
	case ExitRDMSR:
		s += fmt.Sprintf(" MSR %#x (%v)", e.MSR.Index, e.MSR.Reason)
	case ExitWRMSR:
		s += fmt.Sprintf(" MSR %#x, value %#x (%v)", e.MSR.Index, e.MSR.Data, e.MSR.Reason)
	case ExitXen:
		s += fmt.Sprintf(" type %d, input %#x", e.Xen.Type, e.Xen.Input)
	case ExitNotify:
		s += fmt.Sprintf(" flags %#x", e.NotifyFlags)
	case ExitMemoryFault:
		s += fmt.Sprintf(" %#x, %d bytes, flags %#x", e.MemoryFault.GPA, e.MemoryFault.Size, e.MemoryFault.Flags)
	}
	return s
}

func dir(b bool, yes, no string) string {
	if b {
		return yes
	}
	return no
}

// flagNames lists the set bits, unnamed ones as a number.
func flagNames(v uint64, names ...string) string {
	var on []string
	for i, n := range names {
		if v&(1<<i) != 0 {
			on = append(on, n)
		}
	}
	if rest := v >> len(names) << len(names); rest != 0 || v == 0 {
		on = append(on, fmt.Sprintf("%#x", rest))
	}
	return strings.Join(on, "|")
}
