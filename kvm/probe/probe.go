package probe

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hvpost/hvpost/kvm"
)

// slow is the time of an instruction, in ns, from which on a KVM counts as an
// interpreter. Hardware takes below 1, an emulated CPU a few, an interpreter
// of kernel code about 500; a Linux kernel boots with some 10^9 instructions.
const slow = 50

// How long a loop must take to be a measurement. The whole probe stays at ten
// times that, about, and the quick one below 30 ms.
const (
	fullMeasure  = 4 * time.Millisecond
	quickMeasure = 1 * time.Millisecond
)

// Probe examines the device at path, kvm.DefaultPath if it is empty. It takes
// about a tenth of a second and changes nothing.
func Probe(path string) Report {
	if path == "" {
		path = kvm.DefaultPath
	}
	r := Report{Path: path, Host: host()}
	r.examine()
	r.Nested = r.State == Real && r.Host.Hypervisor
	r.Fix = r.fix()
	return r
}

func (r *Report) examine() {
	sys, err := kvm.Open(r.Path)
	if err != nil {
		r.fail(err)
		return
	}
	defer sys.Close()
	if r.APIVersion, err = sys.APIVersion(); err != nil {
		r.fail(err)
		return
	}
	r.VCPUs = sys.Check(kvm.CapMaxVCPUs)
	for _, c := range caps {
		r.Capabilities = append(r.Capabilities, Capability{c.cap.String(), sys.Check(c.cap) > 0, c.needed})
	}
	r.HyperV = sys.Check(kvm.CapHyperVSynIC2) > 0 || sys.Check(kvm.CapHyperV) > 0
	s, err := newSubject(sys)
	if err != nil {
		r.fail(err)
		return
	}
	defer s.close()
	if r.NsPerInstruction, err = s.speed(fullMeasure); err != nil {
		r.fail(err)
		return
	}
	for _, t := range trials {
		r.Instructions = append(r.Instructions, s.attempt(t))
	}
	r.State, r.Reason = verdict(r.NsPerInstruction, r.Instructions)
	if l := r.lacking(); r.State == Real && len(l) > 0 {
		r.State, r.Reason = Broken, r.Path+": lacks "+strings.Join(l, ", ")
	}
}

// fail ends the examination.
func (r *Report) fail(err error) {
	r.State, r.Reason = stateOf(err), err.Error()
	r.busy = errors.Is(err, unix.EBUSY)
}

// stateOf gives an error of opening or of making a VM its state.
func stateOf(err error) State {
	switch {
	case errors.Is(err, kvm.ErrMissing):
		return Missing
	case errors.Is(err, kvm.ErrDenied):
		return Denied
	case errors.Is(err, kvm.ErrNoHardware):
		return NoHardware
	}
	return Broken
}

// verdict tells hardware from an interpreter.
func verdict(ns float64, tried []Instruction) (State, string) {
	for _, i := range tried {
		if i.Linux && !i.Works {
			return Software, fmt.Sprintf("it interprets guest kernels and stops at %s (%s)", i.Name, i.Error)
		}
	}
	if ns >= slow {
		return Software, fmt.Sprintf("it interprets guest kernels: %.0f ns for an instruction", ns)
	}
	return Real, fmt.Sprintf("guest code runs on the CPU: %.2g ns for an instruction", ns)
}

// CanRunLinux reports, in well under 30 ms on an idle machine, whether Linux
// guests run on the device at speed; if not, reason is one line that says
// why. The error is for a device that opens and then fails at what every KVM
// can do: worth telling the user of, whatever is used instead.
func CanRunLinux(path string) (ok bool, reason string, err error) {
	sys, err := kvm.Open(path)
	if err != nil {
		if stateOf(err) == Broken {
			return false, err.Error(), err
		}
		return false, err.Error(), nil
	}
	defer sys.Close()
	for _, c := range caps {
		if c.needed && sys.Check(c.cap) <= 0 {
			return false, fmt.Sprintf("%s: lacks %v: update the host kernel, or use --host emulated", sys.Path(), c.cap), nil
		}
	}
	s, err := newSubject(sys)
	if err != nil {
		err = fmt.Errorf("%s: probe guest: %w", sys.Path(), err)
		return false, err.Error(), err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	var tried []Instruction
	for _, t := range trials {
		if !t.linux {
			continue
		}
		i := s.attempt(t)
		tried = append(tried, i)
		if !i.Works {
			_, reason = verdict(0, tried)
			return false, sys.Path() + ": " + reason, nil
		}
	}
	ns, err := s.speed(quickMeasure)
	if err != nil {
		err = fmt.Errorf("%s: probe guest: %w", sys.Path(), err)
		return false, err.Error(), err
	}
	state, reason := verdict(ns, tried)
	return state == Real, sys.Path() + ": " + reason, nil
}
