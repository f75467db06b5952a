package kvm

import (
	"fmt"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// A Cap is a number of KVM_CHECK_EXTENSION and KVM_ENABLE_CAP.
type Cap uint32

// Capabilities that this program asks for or reports.
const (
	CapIRQChip                = Cap(gokvm.CapIRQChip)
	CapHLT                    = Cap(gokvm.CapHLT)
	CapUserMemory             = Cap(gokvm.CapUserMemory)
	CapSetTSSAddr             = Cap(gokvm.CapSetTSSAddr)
	CapExtCPUID               = Cap(gokvm.CapEXTCPUID)
	CapNrVCPUs                = Cap(gokvm.CapNRVCPUS)
	CapNrMemSlots             = Cap(gokvm.CapNRMemSlots)
	CapMPState                = Cap(gokvm.CapMPState)
	CapSetGuestDebug          = Cap(gokvm.CapSetGuestDebug)
	CapIRQRouting             = Cap(gokvm.CapIRQRouting)
	CapIRQFD                  = Cap(gokvm.CapIRQFD)
	CapIOEventFD              = Cap(gokvm.CapIOEventFD)
	CapSetIdentityMapAddr     = Cap(gokvm.CapSetIdentityMapAddr)
	CapAdjustClock            = Cap(gokvm.CapAdjustClock)
	CapInternalErrorData      = Cap(gokvm.CapInternalErrorData)
	CapVCPUEvents             = Cap(gokvm.CapVCPUEvents)
	CapHyperV                 = Cap(gokvm.CapHyperV)
	CapIntrShadow             = Cap(gokvm.CapINTRShadow)
	CapDebugRegs              = Cap(gokvm.CapDebugRegs)
	CapEnableCap              = Cap(gokvm.CapEnableCap)
	CapXSave                  = Cap(gokvm.CapXSave)
	CapXCRS                   = Cap(gokvm.CapXCRS)
	CapTSCControl             = Cap(gokvm.CapTSCControl)
	CapGetTSCKHz              = Cap(gokvm.CapGetTSCkHz)
	CapMaxVCPUs               = Cap(gokvm.CapMAXVCPUS)
	CapTSCDeadlineTimer       = Cap(gokvm.CapTSCDeadlineTimer)
	CapSyncRegs               = Cap(gokvm.CapSyncRegs)
	CapKVMClockCtrl           = Cap(gokvm.CapKVMClockCtrl)
	CapSignalMSI              = Cap(gokvm.CapSignalMSI)
	CapReadOnlyMem            = Cap(gokvm.CapReadOnlyMEM)
	CapIRQFDResample          = Cap(gokvm.CapIRQFDResample)
	CapEnableCapVM            = Cap(gokvm.CapEnableCAPVM)
	CapCheckExtensionVM       = Cap(gokvm.CapCheckExtentionVM)
	CapDisableQuirks          = Cap(gokvm.CapDisableQuirks)
	CapSplitIRQChip           = Cap(gokvm.CapSplitIRQChip)
	CapIOEventFDAnyLength     = Cap(gokvm.CapIOEventFDAnyLength)
	CapHyperVSynIC            = Cap(gokvm.CapHyperVSYNIC)
	CapMaxVCPUID              = Cap(gokvm.CapMAXVCPUID)
	CapX2APICAPI              = Cap(gokvm.CapX2APICAPI)
	CapImmediateExit          = Cap(gokvm.CapImmediateExit)
	CapX86DisableExits        = Cap(gokvm.CapX86DisableExits)
	CapHyperVSynIC2           = Cap(gokvm.CapHyperVSYNIC2)
	CapNestedState            = Cap(gokvm.CapNestedState)
	CapExceptionPayload       = Cap(gokvm.CapExceptionPayload)
	CapHyperVCPUID            = Cap(gokvm.CapHyerVCPUID)
	CapX86UserSpaceMSR        = Cap(gokvm.CapX86UserSpaceMSR)
	CapX86MSRFilter           = Cap(gokvm.CapX86MSRFilter)
	CapSysHyperVCPUID         = Cap(gokvm.CapSysHyperVCPUID)
	CapX86BusLockExit         = Cap(gokvm.CapX86BusLockExit)
	CapSetGuestDebug2         = Cap(gokvm.CapSetGuestDebug2)
	CapExitHypercall          = Cap(gokvm.CapEXitHyperCall)
	CapExitOnEmulationFailure = Cap(gokvm.CapExitOnEmulationFailure)
	CapDisableQuirks2         = Cap(gokvm.CapDisableQuirks2)
	CapX86TripleFaultEvent    = Cap(gokvm.CapX86TripleFaultEvent)
	CapX86NotifyVMExit        = Cap(gokvm.CapX86NotifyVMExit)
)

var capNames = map[Cap]string{
	CapIRQChip:                "KVM_CAP_IRQCHIP",
	CapHLT:                    "KVM_CAP_HLT",
	CapUserMemory:             "KVM_CAP_USER_MEMORY",
	CapSetTSSAddr:             "KVM_CAP_SET_TSS_ADDR",
	CapExtCPUID:               "KVM_CAP_EXT_CPUID",
	CapNrVCPUs:                "KVM_CAP_NR_VCPUS",
	CapNrMemSlots:             "KVM_CAP_NR_MEMSLOTS",
	CapMPState:                "KVM_CAP_MP_STATE",
	CapSetGuestDebug:          "KVM_CAP_SET_GUEST_DEBUG",
	CapIRQRouting:             "KVM_CAP_IRQ_ROUTING",
	CapIRQFD:                  "KVM_CAP_IRQFD",
	CapIOEventFD:              "KVM_CAP_IOEVENTFD",
	CapSetIdentityMapAddr:     "KVM_CAP_SET_IDENTITY_MAP_ADDR",
	CapAdjustClock:            "KVM_CAP_ADJUST_CLOCK",
	CapInternalErrorData:      "KVM_CAP_INTERNAL_ERROR_DATA",
	CapVCPUEvents:             "KVM_CAP_VCPU_EVENTS",
	CapHyperV:                 "KVM_CAP_HYPERV",
	CapIntrShadow:             "KVM_CAP_INTR_SHADOW",
	CapDebugRegs:              "KVM_CAP_DEBUGREGS",
	CapEnableCap:              "KVM_CAP_ENABLE_CAP",
	CapXSave:                  "KVM_CAP_XSAVE",
	CapXCRS:                   "KVM_CAP_XCRS",
	CapTSCControl:             "KVM_CAP_TSC_CONTROL",
	CapGetTSCKHz:              "KVM_CAP_GET_TSC_KHZ",
	CapMaxVCPUs:               "KVM_CAP_MAX_VCPUS",
	CapTSCDeadlineTimer:       "KVM_CAP_TSC_DEADLINE_TIMER",
	CapSyncRegs:               "KVM_CAP_SYNC_REGS",
	CapKVMClockCtrl:           "KVM_CAP_KVMCLOCK_CTRL",
	CapSignalMSI:              "KVM_CAP_SIGNAL_MSI",
	CapReadOnlyMem:            "KVM_CAP_READONLY_MEM",
	CapIRQFDResample:          "KVM_CAP_IRQFD_RESAMPLE",
	CapEnableCapVM:            "KVM_CAP_ENABLE_CAP_VM",
	CapCheckExtensionVM:       "KVM_CAP_CHECK_EXTENSION_VM",
	CapDisableQuirks:          "KVM_CAP_DISABLE_QUIRKS",
	CapSplitIRQChip:           "KVM_CAP_SPLIT_IRQCHIP",
	CapIOEventFDAnyLength:     "KVM_CAP_IOEVENTFD_ANY_LENGTH",
	CapHyperVSynIC:            "KVM_CAP_HYPERV_SYNIC",
	CapMaxVCPUID:              "KVM_CAP_MAX_VCPU_ID",
	CapX2APICAPI:              "KVM_CAP_X2APIC_API",
	CapImmediateExit:          "KVM_CAP_IMMEDIATE_EXIT",
	CapX86DisableExits:        "KVM_CAP_X86_DISABLE_EXITS",
	CapHyperVSynIC2:           "KVM_CAP_HYPERV_SYNIC2",
	CapNestedState:            "KVM_CAP_NESTED_STATE",
	CapExceptionPayload:       "KVM_CAP_EXCEPTION_PAYLOAD",
	CapHyperVCPUID:            "KVM_CAP_HYPERV_CPUID",
	CapX86UserSpaceMSR:        "KVM_CAP_X86_USER_SPACE_MSR",
	CapX86MSRFilter:           "KVM_CAP_X86_MSR_FILTER",
	CapSysHyperVCPUID:         "KVM_CAP_SYS_HYPERV_CPUID",
	CapX86BusLockExit:         "KVM_CAP_X86_BUS_LOCK_EXIT",
	CapSetGuestDebug2:         "KVM_CAP_SET_GUEST_DEBUG2",
	CapExitHypercall:          "KVM_CAP_EXIT_HYPERCALL",
	CapExitOnEmulationFailure: "KVM_CAP_EXIT_ON_EMULATION_FAILURE",
	CapDisableQuirks2:         "KVM_CAP_DISABLE_QUIRKS2",
	CapX86TripleFaultEvent:    "KVM_CAP_X86_TRIPLE_FAULT_EVENT",
	CapX86NotifyVMExit:        "KVM_CAP_X86_NOTIFY_VMEXIT",
}

// String returns the name in linux/kvm.h, or the number.
func (c Cap) String() string {
	if s, ok := capNames[c]; ok {
		return s
	}
	return fmt.Sprintf("KVM_CAP(%d)", uint32(c))
}

// nameOf names the n-th of a row of values, or numbers it.
func nameOf(kind string, n uint32, names []string) string {
	if uint64(n) < uint64(len(names)) && names[n] != "" {
		return names[n]
	}
	return fmt.Sprintf("%s(%d)", kind, n)
}
