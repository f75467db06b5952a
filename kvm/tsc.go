package kvm

import (
	"errors"
	"math"

	"golang.org/x/sys/unix"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// msrTSC is IA32_TIME_STAMP_COUNTER.
const msrTSC = 0x10

// Group and attribute of the TSC offset of a vCPU (Documentation/virt/kvm/
// devices/vcpu.rst, KVM_VCPU_TSC_CTRL), and the size of struct
// kvm_device_attr.
const (
	vcpuTSCCtrl    = 0
	vcpuTSCOffset  = 0
	sizeDeviceAttr = 24
)

var reqGetDeviceAttr = request{gokvm.IIOW(0xe2, sizeDeviceAttr), "KVM_GET_DEVICE_ATTR"}

// tscTries is how often TSCOffset measures where KVM does not tell: the
// shortest measurement is the least disturbed.
const tscTries = 20

// TSCOffset returns what the guest's time-stamp counter is ahead of the
// host's, modulo 2^64. KVM tells it since Linux 5.16; for older kernels it is
// measured, to about the time of one ioctl. The offset means nothing if the
// two counters differ in rate.
func (v *VCPU) TSCOffset() (uint64, error) {
	offset, err := v.tscOffsetAttr()
	if err == nil {
		return offset, nil
	}
	if !errors.Is(err, unix.ENXIO) && !errors.Is(err, unix.ENOTTY) && !errors.Is(err, unix.EINVAL) {
		return 0, err
	}
	best := uint64(math.MaxUint64)
	for range tscTries {
		t0 := RDTSC()
		guest, err := v.MSR(msrTSC)
		if err != nil {
			return 0, err
		}
		t1 := RDTSC()
		if t1-t0 < best {
			best = t1 - t0
			offset = guest - (t0 + best/2)
		}
	}
	return offset, nil
}
