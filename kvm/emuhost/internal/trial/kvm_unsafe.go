package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Requests and numbers of <linux/kvm.h>.
const (
	kvmGetAPIVersion       = 0xae00
	kvmCreateVM            = 0xae01
	kvmCheckExtension      = 0xae03
	kvmGetVCPUMmapSize     = 0xae04
	kvmCreateVCPU          = 0xae41
	kvmSetUserMemoryRegion = 0x4020ae46
	kvmRun                 = 0xae80
	kvmGetSregs            = 0x8138ae83
	kvmSetSregs            = 0x4138ae84
	kvmSetRegs             = 0x4090ae82

	exitIO  = 2
	exitHLT = 5
)

func ioctl(fd int, req, arg uintptr) (int, error) {
	for {
		r, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, arg)
		if e == unix.EINTR {
			continue
		}
		if e != 0 {
			return 0, e
		}
		return int(r), nil
	}
}

// tryKVM runs a few real-mode instructions on /dev/kvm and prints what the guest wrote to a port, and the Hyper-V
// capabilities.
func tryKVM() error {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	sys := int(f.Fd())
	api, err := ioctl(sys, kvmGetAPIVersion, 0)
	if err != nil {
		return fmt.Errorf("KVM_GET_API_VERSION: %w", err)
	}
	fmt.Printf("api %d\n", api)
	for _, c := range []struct {
		name string
		n    uintptr
	}{{"HYPERV", 44}, {"HYPERV_SYNIC2", 148}, {"HYPERV_CPUID", 167}, {"HYPERV_ENFORCE_CPUID", 199}, {"X86_USER_SPACE_MSR", 188}, {"SYNC_REGS", 74}} {
		v, err := ioctl(sys, kvmCheckExtension, c.n)
		if err != nil {
			return fmt.Errorf("KVM_CAP_%s: %w", c.name, err)
		}
		fmt.Printf("KVM_CAP_%s %d\n", c.name, v)
	}
	vm, err := ioctl(sys, kvmCreateVM, 0)
	if err != nil {
		return fmt.Errorf("KVM_CREATE_VM: %w", err)
	}
	mem, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	copy(mem, []byte{
		0xba, 0xf8, 0x03, // mov dx, 0x3f8
		0xb0, 'o', 0xee, // mov al, 'o'; out dx, al
		0xb0, 'k', 0xee,
		0xb0, '\n', 0xee,
		0xf4, // hlt
	})
	region := [4]uint64{0, 0x1000, 4096, uint64(uintptr(unsafe.Pointer(&mem[0])))} // slot and flags, address, size, where
	if _, err := ioctl(vm, kvmSetUserMemoryRegion, uintptr(unsafe.Pointer(&region))); err != nil {
		return fmt.Errorf("KVM_SET_USER_MEMORY_REGION: %w", err)
	}
	cpu, err := ioctl(vm, kvmCreateVCPU, 0)
	if err != nil {
		return fmt.Errorf("KVM_CREATE_VCPU: %w", err)
	}
	size, err := ioctl(sys, kvmGetVCPUMmapSize, 0)
	if err != nil {
		return fmt.Errorf("KVM_GET_VCPU_MMAP_SIZE: %w", err)
	}
	run, err := unix.Mmap(cpu, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map kvm_run: %w", err)
	}
	var sregs [0x138]byte
	if _, err := ioctl(cpu, kvmGetSregs, uintptr(unsafe.Pointer(&sregs))); err != nil {
		return fmt.Errorf("KVM_GET_SREGS: %w", err)
	}
	binary.LittleEndian.PutUint64(sregs[0:], 0)  // cs.base
	binary.LittleEndian.PutUint16(sregs[12:], 0) // cs.selector
	if _, err := ioctl(cpu, kvmSetSregs, uintptr(unsafe.Pointer(&sregs))); err != nil {
		return fmt.Errorf("KVM_SET_SREGS: %w", err)
	}
	var regs [18]uint64
	regs[16], regs[17] = 0x1000, 2 // rip, rflags
	if _, err := ioctl(cpu, kvmSetRegs, uintptr(unsafe.Pointer(&regs))); err != nil {
		return fmt.Errorf("KVM_SET_REGS: %w", err)
	}
	for {
		if _, err := ioctl(cpu, kvmRun, 0); err != nil {
			return fmt.Errorf("KVM_RUN: %w", err)
		}
		switch reason := binary.LittleEndian.Uint32(run[8:]); reason {
		case exitIO:
			off := binary.LittleEndian.Uint64(run[40:])
			os.Stdout.Write(run[off : off+1])
		case exitHLT:
			runtime.KeepAlive(mem)
			return nil
		default:
			return fmt.Errorf("exit reason %d", reason)
		}
	}
}
