package vmm

import (
	"fmt"

	"github.com/hvpost/hvpost/kvm"
	"github.com/hvpost/hvpost/synic"
)

// apicBusHz is the bus clock of KVM's local APIC timer: one cycle a
// nanosecond.
const apicBusHz = 1_000_000_000

// newClock makes the partition's clock from the guest's TSC, as KVM gives it
// to this processor and thereby to all.
func newClock(cpu *kvm.VCPU) (*synic.TSCClock, error) {
	khz, err := cpu.TSCKHz()
	if err != nil {
		return nil, fmt.Errorf("TSC frequency: %w", err)
	}
	offset, err := cpu.TSCOffset()
	if err != nil {
		return nil, fmt.Errorf("TSC offset: %w", err)
	}
	c, ok := synic.NewTSCClock(uint64(khz)*1000, apicBusHz, func() uint64 { return kvm.RDTSC() + offset })
	if !ok {
		return nil, fmt.Errorf("TSC frequency: KVM says %d kHz, too slow to be true", khz)
	}
	return c, nil
}
