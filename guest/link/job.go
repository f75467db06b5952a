package link

import (
	"encoding/json"
	"fmt"

	"golang.org/x/sys/unix"
)

// JobPath is where the image builder leaves the Job for the agent.
const JobPath = "/.hvpost/job.json"

// A Job is what the guest is to run, as JSON in the image (JobPath) or in a
// START frame.
type Job struct {
	Argv []string `json:"argv,omitempty"` // none: an interactive shell
	Env  []string `json:"env,omitempty"`  // KEY=value; PATH, HOME and TERM get defaults
	Cwd  string   `json:"cwd,omitempty"`  // default "/"

	UID uint32 `json:"uid,omitempty"`
	GID uint32 `json:"gid,omitempty"`

	TTY  bool   `json:"tty,omitempty"` // a pseudo-terminal instead of pipes
	Rows uint16 `json:"rows,omitempty"`
	Cols uint16 `json:"cols,omitempty"`

	Hostname string   `json:"hostname,omitempty"`
	Modules  []string `json:"modules,omitempty"` // files in the image, in load order; "path opt=val ..." passes options
	// Wait lists what must be there before the command runs: an absolute path
	// ("/dev/sda", "/sys/class/net/eth0") that must exist, or the class or
	// instance GUID of a VMBus device that must have a driver.
	Wait        []string    `json:"wait,omitempty"`
	WaitSeconds int         `json:"waitSeconds,omitempty"` // bound on Wait, 0: the agent's default
	Mounts      []Mount     `json:"mounts,omitempty"`      // after Modules and Wait
	Net         []Interface `json:"net,omitempty"`

	Info     bool `json:"info,omitempty"`     // report devices and drivers in an INFO frame
	Poweroff bool `json:"poweroff,omitempty"` // power off after the result; else wait for the host to end the VM
}

// A Mount is one extra mount. The target directory is made if it is missing.
type Mount struct {
	Source  string `json:"source,omitempty"`
	Target  string `json:"target"`
	Type    string `json:"type,omitempty"`
	Options string `json:"options,omitempty"` // as in fstab: "ro,nosuid,size=10%"
}

// An Interface is the static setting of one network interface.
type Interface struct {
	Name    string   `json:"name"`              // "eth0"
	Address string   `json:"address,omitempty"` // "10.0.2.15/24"; none: only set up
	Gateway string   `json:"gateway,omitempty"`
	DNS     []string `json:"dns,omitempty"`
}

// A Hello is the agent's first word.
type Hello struct {
	Release    string `json:"release"`    // kernel release, uname -r
	Version    string `json:"version"`    // kernel version, uname -v
	BoottimeNS uint64 `json:"boottimeNs"` // CLOCK_BOOTTIME when the agent began
	VPs        int    `json:"vps"`        // processors online
	Transport  string `json:"transport"`  // "window" or "uart", and why
}

// An Info is what the agent found in the guest.
type Info struct {
	Devices  []Device `json:"devices,omitempty"`  // /sys/bus/vmbus/devices
	Warnings []string `json:"warnings,omitempty"` // what went wrong on the way without ending it
}

// A Device is one VMBus device as the guest sees it.
type Device struct {
	Instance string `json:"instance"` // instance GUID
	Class    string `json:"class"`    // class GUID
	Driver   string `json:"driver,omitempty"`
}

// Reasons of an Exit.
const (
	ReasonExit       = "exit"        // the command ended by itself
	ReasonSignal     = "signal"      // a signal ended it
	ReasonNotFound   = "not-found"   // no such command; code 127
	ReasonExecFailed = "exec-failed" // found, cannot be executed; code 126
	ReasonAgent      = "agent"       // the agent failed before the command ran; code 125
)

// An Exit is the end of the command.
type Exit struct {
	Code     int    `json:"-"` // 0..255; 128+signal for ReasonSignal
	Reason   string `json:"reason"`
	Signal   int    `json:"signal,omitempty"`   // for ReasonSignal
	Core     bool   `json:"core,omitempty"`     // it dumped core
	Error    string `json:"error,omitempty"`    // one line, for the other reasons
	Shutdown string `json:"shutdown,omitempty"` // "poweroff", "reboot" or "halt" when the guest was told to before the end
}

// SignalName returns the name of the signal ("SIGKILL"), or "" for none.
func (e Exit) SignalName() string {
	if e.Signal == 0 {
		return ""
	}
	if n := unix.SignalName(unix.Signal(e.Signal)); n != "" {
		return n
	}
	return fmt.Sprintf("SIG%d", e.Signal)
}

// parseExit checks the payload and argument of an EXIT frame.
func parseExit(arg uint64, payload []byte) (Exit, error) {
	var e Exit
	if err := json.Unmarshal(payload, &e); err != nil {
		return Exit{}, corruptf("EXIT payload: %v", err)
	}
	e.Code = int(arg)
	switch e.Reason {
	case ReasonExit, ReasonNotFound, ReasonExecFailed, ReasonAgent:
		if e.Signal != 0 {
			return Exit{}, corruptf("EXIT with reason %s and signal %d", e.Reason, e.Signal)
		}
	case ReasonSignal:
		if e.Signal < 1 || e.Signal > maxSignal {
			return Exit{}, corruptf("EXIT with signal %d", e.Signal)
		}
	default:
		return Exit{}, corruptf("EXIT with reason %.20q", e.Reason)
	}
	return e, nil
}
