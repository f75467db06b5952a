package vmm

import (
	"fmt"
	"strings"

	"github.com/hvpost/hvpost/synic"
	"github.com/hvpost/hvpost/synic/hv"
)

// A Cause says why a machine stopped.
type Cause string

// The causes of Outcome.
const (
	// CausePowerOff: the guest entered ACPI S5.
	CausePowerOff Cause = "power-off"
	// CauseReset: the guest reset the machine, by the ACPI reset register, the
	// keyboard controller or the Hyper-V reset MSR.
	CauseReset Cause = "reset"
	// CauseCrash: the guest reported a crash through the Hyper-V crash MSRs.
	CauseCrash Cause = "crash"
	// CauseTripleFault: a processor shut down.
	CauseTripleFault Cause = "triple-fault"
	// CauseExitPort: the guest wrote to the exit port; Outcome.Value has what.
	CauseExitPort Cause = "exit-port"
	// CauseFault: KVM could not go on with a processor: an instruction it
	// cannot emulate, a failed entry, an exit nobody knows.
	CauseFault Cause = "fault"
	// CauseStopped: Stop was called or the context of Run ended.
	CauseStopped Cause = "stopped"
)

// An Outcome is how a machine ended.
type Outcome struct {
	Cause  Cause
	Detail string             // one line, may be empty
	VP     hv.VPIndex         // the processor that caused it, if one did
	Value  uint32             // for CauseExitPort
	Crash  *synic.CrashReport // for CauseCrash
	VPs    []VPState          // every processor as it stopped
	Stats  Stats
}

// A VPState is where a processor was when the machine stopped.
type VPState struct {
	VP     hv.VPIndex `json:"vp"`
	State  string     `json:"state"` // running, halted, waiting-for-sipi, ...
	RIP    uint64     `json:"rip"`
	RSP    uint64     `json:"rsp"`
	RFlags uint64     `json:"rflags"`
	CR0    uint64     `json:"cr0"`
	CR2    uint64     `json:"cr2"`
	CR3    uint64     `json:"cr3"`
	CR4    uint64     `json:"cr4"`
	CS     uint16     `json:"cs"`
	CPL    uint8      `json:"cpl"`
	Code   string     `json:"code,omitempty"` // bytes at RIP, if they could be read
	Err    string     `json:"error,omitempty"`
}

func (s VPState) String() string {
	if s.Err != "" {
		return fmt.Sprintf("VP %d: %s: registers unavailable: %s", s.VP, s.State, s.Err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "VP %d: %s, RIP %#016x RSP %#016x CS %#04x CPL %d RFLAGS %#x CR0 %#x CR2 %#x CR3 %#x CR4 %#x",
		s.VP, s.State, s.RIP, s.RSP, s.CS, s.CPL, s.RFlags, s.CR0, s.CR2, s.CR3, s.CR4)
	if s.Code != "" {
		fmt.Fprintf(&b, " code %s", s.Code)
	}
	return b.String()
}
