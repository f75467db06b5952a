package kvm

import "unsafe"

// RDTSC reads the time-stamp counter of the processor it runs on.
func RDTSC() uint64

// deviceAttr is struct kvm_device_attr; addr points to the value.
type deviceAttr struct {
	flags uint32
	group uint32
	attr  uint64
	addr  unsafe.Pointer
}

func (v *VCPU) tscOffsetAttr() (uint64, error) {
	offset := new(uint64)
	a := deviceAttr{group: vcpuTSCCtrl, attr: vcpuTSCOffset, addr: unsafe.Pointer(offset)}
	_, err := ioctlPtr(v.fd, reqGetDeviceAttr, &a)
	return *offset, err
}
