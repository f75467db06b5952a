package synic

import (
	"errors"
	"fmt"

	"github.com/hvpost/hvpost/guest"
	"github.com/hvpost/hvpost/synic/hv"
)

// MaxVPs is the most virtual processors of a partition: what fits the 64-bit
// processor masks of the hypercalls that have no sparse form.
const MaxVPs = 64

// MaxPhysBits is the widest guest physical address x86 has.
const MaxPhysBits = 52

// An Interrupter delivers interrupts to the local APICs. Its methods are
// called from any goroutine, with the target VP's lock held: they must not
// block and must not call back into this package. The vector is 16 to 255.
type Interrupter interface {
	// Interrupt sends a fixed, edge-triggered interrupt.
	Interrupt(vp hv.VPIndex, vector uint8) error
}

// An AutoEOIInterrupter can also deliver interrupts that end themselves: the
// APIC's in-service bit must not stay set. An Interrupter that has this method
// gets the interrupts of AutoEOI SINTs through it. Without it they are sent
// like others, which a guest that then writes no EOI will notice.
type AutoEOIInterrupter interface {
	InterruptAutoEOI(vp hv.VPIndex, vector uint8) error
}

// A MessagePort is the host end of a connection that carries messages.
type MessagePort interface {
	// HandleMessage takes a message that the guest posted. It runs on the
	// posting VP: copy, queue, return. Its status is the hypercall's;
	// hv.StatusInsufficientBuffers makes the guest try again later.
	HandleMessage(m hv.Message) hv.Status
}

// An EventPort is the host end of an event connection.
type EventPort interface {
	// HandleEvent reports that the guest signalled a flag, counted from the
	// port's first. It may run on the signalling VP and must not block.
	HandleEvent(flag uint16)
}

// A Clock is the time of a partition. It is called from any goroutine, also
// with a VP's lock held.
type Clock interface {
	Now() uint64    // reference time: units of 100 ns since creation, monotonic
	TSC() uint64    // the guest's TSC now, the same on all VPs
	TSCHz() uint64  // the guest's TSC frequency
	APICHz() uint64 // the APIC timer's frequency
}

// A TSCReferencer is a Clock that knows exactly how its Now follows from its
// TSC, see hv.ReferenceTSC. The reference TSC page of such a clock agrees with
// TIME_REF_COUNT to the unit. Without it the relation is measured when the
// page is enabled, to about the time of two clock readings.
type TSCReferencer interface {
	ReferenceTSC() (scale uint64, offset int64)
}

// An Alarm wakes one VP's timers.
type Alarm interface {
	// Set arranges for fire to be called once, at or shortly after reference
	// time t and never before it, on some goroutine. It replaces an earlier
	// Set; 0 disarms, and a t in the past fires soon. Set is called with the
	// VP's lock held and must neither block nor call fire itself.
	Set(t uint64)
	// Stop ends the alarm and waits until no fire runs any more. It is called
	// once, with no lock held; a later Set does nothing.
	Stop()
}

// An AlarmMaker makes the alarm of a VP.
type AlarmMaker func(vp hv.VPIndex, fire func()) (Alarm, error)

// A Doorbell lets the machine accept a fast SignalEvent of flag 0 without a
// hypercall, in the kernel. It only ever hears of connections for which that
// makes no difference to the guest.
type Doorbell interface {
	// Add makes signals of id call fn, on any goroutine; several signals may
	// become one call.
	Add(id hv.ConnectionID, fn func()) error
	// Remove undoes Add. Calls of fn may still be running when it returns.
	Remove(id hv.ConnectionID)
}

// An APIC gives access to the local APICs, for the MSRs that stand in for its
// registers. It is called on the VP's own goroutine with no lock held.
type APIC interface {
	EOI(vp hv.VPIndex)
	ICR(vp hv.VPIndex) uint64             // high half: ICR high, low half: ICR low
	SetICR(vp hv.VPIndex, v uint64) bool  // sends the IPI; false: #GP
	TPR(vp hv.VPIndex) uint8              // task priority
	SetTPR(vp hv.VPIndex, tpr uint8) bool // false: #GP
}

// A Config describes a partition.
type Config struct {
	Memory     *guest.Memory
	VPs        int // 1 to MaxVPs
	PhysBits   int // implemented physical address bits, 32 to MaxPhysBits; 0 means MaxPhysBits
	Interrupts Interrupter
	Clock      Clock
	Alarms     AlarmMaker // needed with hv.AccessSyntheticTimers
	Doorbell   Doorbell   // nil: every signal is a hypercall
	APIC       APIC       // nil: MSRs EOI, ICR and TPR do not exist

	// Privileges and Features are leaf 0x40000003 (EAX with EBX; EDX). They
	// gate MSRs and hypercalls, and must not claim what is not there: see
	// SupportedPrivileges and SupportedFeatures.
	Privileges hv.Privileges
	Features   uint32

	TrapPort   uint8 // I/O port of the hypercall page's trap
	SignalPort uint8 // I/O port of its fast signal, another one

	// Idle halts the VP until an interrupt is pending for it, even a masked
	// one. Needed with hv.AccessGuestIdle.
	Idle func(vp hv.VPIndex)
	// Runtime is the processor time a VP has used, in units of 100 ns. Nil
	// counts all time since the partition's creation.
	Runtime func(vp hv.VPIndex) uint64
	// OnReset hears that the guest asked for a reset. May be nil.
	OnReset func(vp hv.VPIndex)
	// OnCrash hears that the guest reported its own crash. May be nil.
	OnCrash func(CrashReport)
	// OnTSCInvariant hears that the guest wants CPUID 0x80000007 EDX bit 8 to
	// be shown, or no longer. May be nil.
	OnTSCInvariant func(on bool)
	// Logf takes one line about a guest's or host's mistake. The rate is
	// limited here. May be nil.
	Logf func(format string, args ...any)
}

// SupportedPrivileges are those whose MSRs and hypercalls exist here.
const SupportedPrivileges = hv.AccessVPRuntime | hv.AccessRefCounter | hv.AccessSynIC |
	hv.AccessSyntheticTimers | hv.AccessAPIC | hv.AccessHypercall | hv.AccessVPIndex |
	hv.AccessReset | hv.AccessReferenceTSC | hv.AccessGuestIdle | hv.AccessFrequency |
	hv.AccessTSCInvariant | hv.PostMessages | hv.SignalEvents | hv.EnableExtendedHypercalls

// SupportedFeatures are the bits of leaf 0x40000003 EDX that exist here.
const SupportedFeatures = hv.FeatureGuestIdle | hv.FeatureFrequencyMSRs | hv.FeatureCrashMSRs |
	hv.FeatureSINTPolling | hv.FeatureHypercallLock | hv.FeatureDirectTimers

func (c *Config) check() error {
	switch {
	case c.Memory == nil:
		return errors.New("partition: no memory")
	case c.VPs < 1 || c.VPs > MaxVPs:
		return fmt.Errorf("partition: %d VPs: have 1 to %d", c.VPs, MaxVPs)
	case c.PhysBits != 0 && (c.PhysBits < 32 || c.PhysBits > MaxPhysBits):
		return fmt.Errorf("partition: %d physical address bits: have 32 to %d", c.PhysBits, MaxPhysBits)
	case c.Interrupts == nil:
		return errors.New("partition: no interrupter")
	case c.Clock == nil:
		return errors.New("partition: no clock")
	case c.TrapPort == c.SignalPort:
		return fmt.Errorf("partition: hypercall trap and fast signal share port %#x", c.TrapPort)
	case c.Privileges&^SupportedPrivileges != 0:
		return fmt.Errorf("partition: privileges %#x are not implemented", uint64(c.Privileges&^SupportedPrivileges))
	case c.Features&^SupportedFeatures != 0:
		return fmt.Errorf("partition: features %#x are not implemented", c.Features&^SupportedFeatures)
	case c.Alarms == nil && c.Privileges.Has(hv.AccessSyntheticTimers):
		return errors.New("partition: synthetic timers without alarms")
	case c.Idle == nil && c.Privileges.Has(hv.AccessGuestIdle):
		return errors.New("partition: guest idle register without a way to idle")
	}
	return nil
}
