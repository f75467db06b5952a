package session

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/hvpost/hvpost/vmm"
)

// A Reason says what became of a run.
type Reason string

// The reasons of Result. A Result has exactly one.
const (
	ReasonExit        Reason = "exit"         // the command ended; ExitCode is its own
	ReasonNotFound    Reason = "not-found"    // the command does not exist in the guest
	ReasonCannotRun   Reason = "cannot-run"   // the command exists and could not be executed
	ReasonPanic       Reason = "panic"        // the guest kernel panicked
	ReasonTripleFault Reason = "triple-fault" // a processor shut down, or KVM could not go on with it
	ReasonReset       Reason = "reset"        // the guest reset the machine
	ReasonNoResult    Reason = "no-result"    // the guest powered off before the command's end was known
	ReasonTimeout     Reason = "timeout"      // Options.Timeout
	ReasonBootTimeout Reason = "boot-timeout" // Options.BootTimeout
	ReasonStopped     Reason = "stopped"      // the context ended: a signal or the user
	ReasonNoKVM       Reason = "no-kvm"       // there is no usable KVM
	ReasonError       Reason = "error"        // of the monitor, or of its use
)

// A Result is the account of a run; as JSON it is the authority on what
// happened.
type Result struct {
	Reason   Reason `json:"reason"`
	ExitCode int    `json:"exit_code"`        // what the hvpost command exits with
	Signal   string `json:"signal,omitempty"` // that ended the guest's command
	Detail   string `json:"detail,omitempty"` // one line

	// StopSignal is the number of the signal that ended the run from outside,
	// for ReasonStopped.
	StopSignal int `json:"stop_signal,omitempty"`

	Command []string `json:"command"`
	Kernel  Kernel   `json:"kernel"`
	Cmdline string   `json:"cmdline"`
	CPUs    int      `json:"cpus"`
	Memory  uint64   `json:"memory_bytes"`
	Host    string   `json:"host"` // kvm or emulated

	BootMS  Phases            `json:"boot_ms"`
	Link    string            `json:"link,omitempty"` // how the agent talks: window, or uart and why
	VMBus   *VMBus            `json:"vmbus,omitempty"`
	Exits   map[string]uint64 `json:"exits,omitempty"`
	Stats   *vmm.Stats        `json:"stats,omitempty"`
	VPs     []vmm.VPState     `json:"vps,omitempty"`          // where each processor stood, when the guest failed
	Console string            `json:"console,omitempty"`      // the console log's path
	Tail    []string          `json:"console_tail,omitempty"` // the last lines, when the guest failed
}

// Kernel says which kernel ran.
type Kernel struct {
	Release string `json:"release"`
	Path    string `json:"path"`
	Source  string `json:"source,omitempty"`
	Boot    string `json:"boot"`
}

// Phases are milliseconds since the start of the process; 0 was not reached.
type Phases struct {
	Prepared float64 `json:"prepared"`  // kernel, modules and image found
	FirstRun float64 `json:"first_run"` // first guest instruction
	VMBus    float64 `json:"vmbus"`     // the guest opened its first VMBus channel
	Agent    float64 `json:"agent"`     // the agent said hello
	Command  float64 `json:"command"`   // the command runs
	Exit     float64 `json:"exit"`      // the command's exit arrived
	End      float64 `json:"end"`       // everything is gone
}

// VMBus is the bus as it was when the command ended.
type VMBus struct {
	Version string        `json:"version"`
	Devices []VMBusDevice `json:"devices"`
}

// A VMBusDevice is one offered channel.
type VMBusDevice struct {
	Name     string `json:"name"`
	Type     string `json:"type"`
	Instance string `json:"instance"`
	State    string `json:"state"`
	Driver   string `json:"driver,omitempty"` // in the guest, as its agent saw it
}

// WriteFile writes the result as JSON: to a file whole or not at all, through
// to a pipe or a device.
func (r *Result) WriteFile(path string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	b = append(b, '\n')
	if IsStream(path) {
		err = writeStream(path, b)
	} else {
		err = replaceFile(path, b)
	}
	if err != nil {
		return fmt.Errorf("result file %s: %w", path, reason(err))
	}
	return nil
}

func writeStream(path string, b []byte) error {
	f, err := OpenStream(path)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if e := f.Close(); err == nil {
		err = e
	}
	return err
}

// replaceFile makes path a file with the contents b. A link stays one: its
// target is replaced.
func replaceFile(path string, b []byte) error {
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".hvpost-result-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if e := f.Chmod(0o644); err == nil {
		err = e
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	return err
}
