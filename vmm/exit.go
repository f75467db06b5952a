package vmm

import (
	"fmt"

	"github.com/hvpost/hvpost/kvm"
	"github.com/hvpost/hvpost/synic/hv"
)

// handle is THE exit switch: everything a processor leaves the guest for
// passes through here. A guest cannot cause an error, only an outcome; an
// exit that nobody knows ends the machine with its registers.
func (vp *vp) handle(e *kvm.Exit) {
	m := vp.m
	switch e.Reason {
	case kvm.ExitIO:
		vp.handleIO(e)

	case kvm.ExitMMIO:
		vp.exits.count(exitMMIO)
		m.mmio(e.MMIO.GPA, e.MMIO.Write, e.MMIO.Data)

	case kvm.ExitRDMSR:
		vp.exits.count(exitRdmsr)
		v, ok := vp.synic.ReadMSR(hv.MSR(e.MSR.Index))
		e.CompleteRDMSR(v, ok)

	case kvm.ExitWRMSR:
		vp.exits.count(wrmsrKind(hv.MSR(e.MSR.Index)))
		e.CompleteWRMSR(vp.synic.WriteMSR(hv.MSR(e.MSR.Index), e.MSR.Data))

	case kvm.ExitDebug:
		vp.exits.count(exitDebug)
		vp.autoEOI.step()

	case kvm.ExitIRQWindowOpen, kvm.ExitIntr, kvm.ExitSetTPR, kvm.ExitIOAPICEOI:
		vp.exits.count(exitOther)

	case kvm.ExitHLT:
		// With the in-kernel LAPIC KVM keeps a halted processor to itself.
		vp.exits.count(exitOther)

	case kvm.ExitShutdown:
		m.stop(Outcome{Cause: CauseTripleFault, VP: vp.index, Detail: fmt.Sprintf("triple fault on VP %d", vp.index)})

	case kvm.ExitSystemEvent:
		switch e.SystemEvent.Type {
		case kvm.SystemEventShutdown:
			m.stop(Outcome{Cause: CausePowerOff, VP: vp.index, Detail: "system event"})
		case kvm.SystemEventReset:
			m.stop(Outcome{Cause: CauseReset, VP: vp.index, Detail: "system event"})
		default:
			vp.fault("system event %d", e.SystemEvent.Type)
		}

	case kvm.ExitInternalError:
		vp.fault("KVM internal error, suberror %d (%s)", e.Internal.Suberror, e)

	case kvm.ExitFailEntry:
		vp.fault("KVM could not enter the guest: hardware reason %#x on CPU %d", e.FailEntry.HardwareReason, e.FailEntry.CPU)

	default:
		vp.fault("unknown KVM exit: %v", e)
	}
}

// mmio serves an access to an address without memory: the agent's doorbell,
// or nothing, which reads as ones.
func (m *Machine) mmio(gpa uint64, write bool, data []byte) {
	switch {
	case !write:
		for i := range data {
			data[i] = 0xFF
		}
	case m.cfg.Window > 0 && gpa == WindowBase+m.cfg.Window && m.cfg.Doorbell != nil:
		m.cfg.Doorbell(data[0])
	}
}

// fault ends the machine because this VP cannot go on.
func (vp *vp) fault(format string, args ...any) {
	vp.m.stop(Outcome{Cause: CauseFault, VP: vp.index,
		Detail: fmt.Sprintf("VP %d: %s", vp.index, fmt.Sprintf(format, args...))})
}

// wrmsrKind sorts MSR writes for the counters.
func wrmsrKind(msr hv.MSR) exitKind {
	switch {
	case msr == hv.MSREOM:
		return exitEOM
	case msr >= hv.MSRSTIMER0Config && msr < hv.MSRSTIMER0Config+8:
		return exitTimer
	}
	return exitWrmsr
}

// handleIO serves port I/O: the hypercall page's ports first, then the
// chipset. A string instruction comes as several items of one size.
func (vp *vp) handleIO(e *kvm.Exit) {
	io := &e.IO
	if io.Port == trapPort || io.Port == signalPort {
		if io.Out && io.Size == 4 && io.Count == 1 && vp.hypercall(io.Port) {
			return
		}
	}
	if io.Port&^7 == com1Port {
		vp.exits.count(exitConsole)
	} else {
		vp.exits.count(exitPIO)
	}
	data := io.Data
	for range io.Count {
		p := data[:io.Size]
		data = data[io.Size:]
		if io.Out {
			vp.m.ports.out(io.Port, p)
		} else {
			vp.m.ports.in(io.Port, p)
		}
	}
}
