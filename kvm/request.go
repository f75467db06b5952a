package kvm

import (
	"fmt"

	"golang.org/x/sys/unix"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// A request is an ioctl number with the name that errors give it.
type request struct {
	code uintptr
	name string
}

func (r request) fail(errno unix.Errno) error {
	return fmt.Errorf("kvm: %s: %w", r.name, errno)
}

// Sizes in bytes that are part of the request numbers, from linux/kvm.h and
// asm/kvm.h; TestStructSizes holds the Go types to them.
const (
	sizeRegs       = 144
	sizeSregs      = 312
	sizeFPU        = 416
	sizeXSave      = 4096
	sizeXCRS       = 392
	sizeDebugRegs  = 128
	sizeEvents     = 64
	sizeMPState    = 4
	sizeLAPIC      = 1024
	sizeTranslate  = 24
	sizeGuestDebug = 72
	sizeCPUID      = 8 // header; entries of 40 follow
	sizeMSRs       = 8 // header; entries of 16 follow
	sizeMSRList    = 4 // header; indices of 4 follow
	sizeMSRFilter  = 392
	sizeRegion     = 32
	sizeIRQLevel   = 8
	sizeIRQChip    = 520
	sizeRouting    = 8 // header; entries of 48 follow
	sizeIRQFD      = 32
	sizeIOEventFD  = 64
	sizeMSI        = 32
	sizeClock      = 48
	sizeEnableCap  = 104
	sizeSigMask    = 4 // header; the mask follows
)

// Requests of linux/kvm.h. Numbers shared by two requests differ in direction
// and size.
var (
	reqGetAPIVersion     = request{gokvm.IIO(0x00), "KVM_GET_API_VERSION"}
	reqCreateVM          = request{gokvm.IIO(0x01), "KVM_CREATE_VM"}
	reqGetMSRIndexList   = request{gokvm.IIOWR(0x02, sizeMSRList), "KVM_GET_MSR_INDEX_LIST"}
	reqCheckExtension    = request{gokvm.IIO(0x03), "KVM_CHECK_EXTENSION"}
	reqGetVCPUMmapSize   = request{gokvm.IIO(0x04), "KVM_GET_VCPU_MMAP_SIZE"}
	reqGetSupportedCPUID = request{gokvm.IIOWR(0x05, sizeCPUID), "KVM_GET_SUPPORTED_CPUID"}

	reqCreateVCPU         = request{gokvm.IIO(0x41), "KVM_CREATE_VCPU"}
	reqSetMemoryRegion    = request{gokvm.IIOW(0x46, sizeRegion), "KVM_SET_USER_MEMORY_REGION"}
	reqSetTSSAddr         = request{gokvm.IIO(0x47), "KVM_SET_TSS_ADDR"}
	reqSetIdentityMapAddr = request{gokvm.IIOW(0x48, 8), "KVM_SET_IDENTITY_MAP_ADDR"}
	reqCreateIRQChip      = request{gokvm.IIO(0x60), "KVM_CREATE_IRQCHIP"}
	reqIRQLine            = request{gokvm.IIOW(0x61, sizeIRQLevel), "KVM_IRQ_LINE"}
	reqGetIRQChip         = request{gokvm.IIOWR(0x62, sizeIRQChip), "KVM_GET_IRQCHIP"}
	reqSetIRQChip         = request{gokvm.IIOR(0x63, sizeIRQChip), "KVM_SET_IRQCHIP"}
	reqSetGSIRouting      = request{gokvm.IIOW(0x6A, sizeRouting), "KVM_SET_GSI_ROUTING"}
	reqIRQFD              = request{gokvm.IIOW(0x76, sizeIRQFD), "KVM_IRQFD"}
	reqIOEventFD          = request{gokvm.IIOW(0x79, sizeIOEventFD), "KVM_IOEVENTFD"}
	reqSetClock           = request{gokvm.IIOW(0x7B, sizeClock), "KVM_SET_CLOCK"}
	reqGetClock           = request{gokvm.IIOR(0x7C, sizeClock), "KVM_GET_CLOCK"}
	reqEnableCap          = request{gokvm.IIOW(0xA3, sizeEnableCap), "KVM_ENABLE_CAP"}
	reqSignalMSI          = request{gokvm.IIOW(0xA5, sizeMSI), "KVM_SIGNAL_MSI"}
	reqSetMSRFilter       = request{gokvm.IIOW(0xC6, sizeMSRFilter), "KVM_X86_SET_MSR_FILTER"}

	reqRun           = request{gokvm.IIO(0x80), "KVM_RUN"}
	reqGetRegs       = request{gokvm.IIOR(0x81, sizeRegs), "KVM_GET_REGS"}
	reqSetRegs       = request{gokvm.IIOW(0x82, sizeRegs), "KVM_SET_REGS"}
	reqGetSregs      = request{gokvm.IIOR(0x83, sizeSregs), "KVM_GET_SREGS"}
	reqSetSregs      = request{gokvm.IIOW(0x84, sizeSregs), "KVM_SET_SREGS"}
	reqTranslate     = request{gokvm.IIOWR(0x85, sizeTranslate), "KVM_TRANSLATE"}
	reqInterrupt     = request{gokvm.IIOW(0x86, 4), "KVM_INTERRUPT"}
	reqGetMSRs       = request{gokvm.IIOWR(0x88, sizeMSRs), "KVM_GET_MSRS"}
	reqSetMSRs       = request{gokvm.IIOW(0x89, sizeMSRs), "KVM_SET_MSRS"}
	reqSetSignalMask = request{gokvm.IIOW(0x8B, sizeSigMask), "KVM_SET_SIGNAL_MASK"}
	reqGetFPU        = request{gokvm.IIOR(0x8C, sizeFPU), "KVM_GET_FPU"}
	reqSetFPU        = request{gokvm.IIOW(0x8D, sizeFPU), "KVM_SET_FPU"}
	reqGetLAPIC      = request{gokvm.IIOR(0x8E, sizeLAPIC), "KVM_GET_LAPIC"}
	reqSetLAPIC      = request{gokvm.IIOW(0x8F, sizeLAPIC), "KVM_SET_LAPIC"}
	reqSetCPUID      = request{gokvm.IIOW(0x90, sizeCPUID), "KVM_SET_CPUID2"}
	reqGetCPUID      = request{gokvm.IIOWR(0x91, sizeCPUID), "KVM_GET_CPUID2"}
	reqGetMPState    = request{gokvm.IIOR(0x98, sizeMPState), "KVM_GET_MP_STATE"}
	reqSetMPState    = request{gokvm.IIOW(0x99, sizeMPState), "KVM_SET_MP_STATE"}
	reqNMI           = request{gokvm.IIO(0x9A), "KVM_NMI"}
	reqSetGuestDebug = request{gokvm.IIOW(0x9B, sizeGuestDebug), "KVM_SET_GUEST_DEBUG"}
	reqGetEvents     = request{gokvm.IIOR(0x9F, sizeEvents), "KVM_GET_VCPU_EVENTS"}
	reqSetEvents     = request{gokvm.IIOW(0xA0, sizeEvents), "KVM_SET_VCPU_EVENTS"}
	reqGetDebugRegs  = request{gokvm.IIOR(0xA1, sizeDebugRegs), "KVM_GET_DEBUGREGS"}
	reqSetDebugRegs  = request{gokvm.IIOW(0xA2, sizeDebugRegs), "KVM_SET_DEBUGREGS"}
	reqSetTSCKHz     = request{gokvm.IIO(0xA2), "KVM_SET_TSC_KHZ"}
	reqGetTSCKHz     = request{gokvm.IIO(0xA3), "KVM_GET_TSC_KHZ"}
	reqGetXSave      = request{gokvm.IIOR(0xA4, sizeXSave), "KVM_GET_XSAVE"}
	reqSetXSave      = request{gokvm.IIOW(0xA5, sizeXSave), "KVM_SET_XSAVE"}
	reqGetXCRS       = request{gokvm.IIOR(0xA6, sizeXCRS), "KVM_GET_XCRS"}
	reqSetXCRS       = request{gokvm.IIOW(0xA7, sizeXCRS), "KVM_SET_XCRS"}
	reqKVMClockCtrl  = request{gokvm.IIO(0xAD), "KVM_KVMCLOCK_CTRL"}
)
