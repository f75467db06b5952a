package vmm

import "sync/atomic"

// exitKind indexes the exit counters of a VP.
type exitKind int

// What a VP's exits to this process were for.
const (
	exitPIO exitKind = iota
	exitConsole
	exitMMIO
	exitRdmsr
	exitWrmsr
	exitEOM
	exitTimer
	exitHypercall
	exitSignal
	exitKick
	exitDebug
	exitOther
	exitKinds
)

var exitNames = [exitKinds]string{
	exitPIO: "pio", exitConsole: "console", exitMMIO: "mmio", exitRdmsr: "rdmsr", exitWrmsr: "wrmsr",
	exitEOM: "eom", exitTimer: "timer", exitHypercall: "hypercall", exitSignal: "signal",
	exitKick: "kick", exitDebug: "debug", exitOther: "other",
}

// exitCounters is written by its VP and read by anyone.
type exitCounters [exitKinds]atomic.Uint64

func (c *exitCounters) count(k exitKind) { c[k].Add(1) }

// Stats are the counters of a machine.
type Stats struct {
	// Exits counts exits to this process over all processors, by kind: pio,
	// console (the first UART), mmio, rdmsr, wrmsr (eom and timer apart),
	// hypercall, signal (a SignalEvent that no doorbell took), kick, debug,
	// other. Kinds that did not occur are absent.
	Exits map[string]uint64 `json:"exits"`
	// Doorbells counts SignalEvent calls that the kernel accepted without an
	// exit. Several before the host looks count as one.
	Doorbells uint64 `json:"doorbells"`
	// Interrupts counts interrupts injected for the SynIC.
	Interrupts uint64 `json:"interrupts"`
	// ConsoleLost counts console bytes dropped because their reader was slow.
	ConsoleLost uint64 `json:"console_lost,omitempty"`
}

// Total is the sum of all exits.
func (s Stats) Total() uint64 {
	var n uint64
	for _, v := range s.Exits {
		n += v
	}
	return n
}

// Stats returns the counters as they are now. It may be called at any time.
func (m *Machine) Stats() Stats {
	s := Stats{Exits: map[string]uint64{}, Doorbells: m.doorbells.rung.Load(), Interrupts: m.interrupts.Load()}
	for _, vp := range m.vps {
		for k := range vp.exits {
			if n := vp.exits[k].Load(); n > 0 {
				s.Exits[exitNames[k]] += n
			}
		}
	}
	return s
}
