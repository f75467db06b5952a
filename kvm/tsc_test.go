package kvm_test

import (
	"testing"

	"github.com/hvpost/hvpost/kvm"
	"github.com/hvpost/hvpost/kvm/kvmtest"
)

// The guest's counter, read through KVM between two readings of the host's,
// must lie between them once the offset is added.
func TestTSCOffset_PlacesTheGuestCounter(t *testing.T) {
	kvmtest.Need(t)
	sys, err := kvm.Open("")
	if err != nil {
		t.Fatal(err)
	}
	defer sys.Close()
	vm, err := sys.CreateVM()
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	if err := vm.CreateIRQChip(); err != nil {
		t.Fatal(err)
	}
	cpu, err := vm.CreateVCPU(0)
	if err != nil {
		t.Fatal(err)
	}
	defer cpu.Close()
	offset, err := cpu.TSCOffset()
	if err != nil {
		t.Fatal(err)
	}
	// Measured offsets are off by part of an ioctl; allow one of them.
	t0 := kvm.RDTSC()
	guest, err := cpu.MSR(0x10)
	if err != nil {
		t.Fatal(err)
	}
	t1 := kvm.RDTSC()
	slack := t1 - t0
	if host := guest - offset; host < t0-slack || host > t1+slack {
		t.Errorf("guest counter %d is %d in host terms, read between %d and %d", guest, host, t0, t1)
	}
	khz, err := cpu.TSCKHz()
	t.Logf("offset %#x, %d kHz, %v, one reading takes %d cycles", offset, khz, err, slack)
}
