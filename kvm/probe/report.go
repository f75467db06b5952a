package probe

import (
	"github.com/hvpost/hvpost/kvm"
)

// A State is the verdict on a device.
type State string

// States.
const (
	Missing    State = "missing"     // there is no device
	Denied     State = "denied"      // this user may not open it
	NoHardware State = "no-hardware" // it opens nothing: no VMX or SVM
	Software   State = "software"    // it interprets guest kernels
	Real       State = "real"        // VMX or SVM
	Broken     State = "broken"      // it opens, but does not do what it must
)

// A Report is all that a probe finds.
type Report struct {
	Path   string `json:"path"`
	State  State  `json:"state"`
	Reason string `json:"reason"` // of the state, one line

	// Nested says that KVM here stands on another hypervisor.
	Nested bool `json:"nested"`

	APIVersion   int          `json:"api_version"`
	VCPUs        int          `json:"max_vcpus"`
	Capabilities []Capability `json:"capabilities"`

	// HyperV says that the kernel has a Hyper-V emulation of its own. It is
	// not used; the guest sees the same with and without.
	HyperV bool `json:"in_kernel_hyperv"`

	// NsPerInstruction is the time of one instruction of a loop of two in
	// 64-bit kernel mode, 0 if it could not be measured.
	NsPerInstruction float64 `json:"ns_per_instruction"`

	// Instructions are the classes that Linux needs and interpreters lack.
	Instructions []Instruction `json:"instructions"`

	Host Host     `json:"host"`
	Fix  []string `json:"fix"` // commands and steps, in order

	busy bool // another hypervisor holds the CPU's virtualization
}

// A Capability is one that the machine is built on.
type Capability struct {
	Name   string `json:"name"`
	Have   bool   `json:"have"`
	Needed bool   `json:"needed"` // otherwise it is only useful
}

// An Instruction is a probe of one class of instructions.
type Instruction struct {
	Name  string `json:"name"`
	Works bool   `json:"works"`
	Linux bool   `json:"linux"`           // Linux does not boot without it
	Error string `json:"error,omitempty"` // what happened instead
}

// A Host is what the host says of itself.
type Host struct {
	Kernel     string   `json:"kernel"`     // release
	Vendor     string   `json:"vendor"`     // GenuineIntel or AuthenticAMD
	Model      string   `json:"model"`      // of the CPU
	VMX        bool     `json:"vmx"`        // CPU flag
	SVM        bool     `json:"svm"`        // CPU flag
	Hypervisor bool     `json:"hypervisor"` // CPU flag: the host is itself a guest
	Modules    []string `json:"modules"`    // KVM modules that are loaded
}

// OK reports whether Linux guests run on the device at speed.
func (r *Report) OK() bool { return r.State == Real }

// lacking returns the needed capabilities that are not there.
func (r *Report) lacking() []string {
	var names []string
	for _, c := range r.Capabilities {
		if c.Needed && !c.Have {
			names = append(names, c.Name)
		}
	}
	return names
}

// caps are the capabilities that the machine uses, the needed ones first.
var caps = []struct {
	cap    kvm.Cap
	needed bool
}{
	{kvm.CapUserMemory, true},
	{kvm.CapSetTSSAddr, true},
	{kvm.CapExtCPUID, true},
	{kvm.CapIRQChip, true},
	{kvm.CapMPState, true},
	{kvm.CapVCPUEvents, true},
	{kvm.CapSetGuestDebug, true},
	{kvm.CapIOEventFD, true},
	{kvm.CapSignalMSI, true},
	{kvm.CapSyncRegs, true},
	{kvm.CapImmediateExit, true},
	{kvm.CapX86UserSpaceMSR, true},
	{kvm.CapX86MSRFilter, true},
	{kvm.CapIRQFD, false},
	{kvm.CapIRQRouting, false},
	{kvm.CapAdjustClock, false},
	{kvm.CapTSCDeadlineTimer, false},
	{kvm.CapGetTSCKHz, false},
	{kvm.CapXSave, false},
	{kvm.CapXCRS, false},
	{kvm.CapX2APICAPI, false},
	{kvm.CapReadOnlyMem, false},
	{kvm.CapExitOnEmulationFailure, false},
}
