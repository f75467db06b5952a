package kvm

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Why Open failed, for errors.Is. The kernel's errno stays in the chain.
var (
	ErrMissing    = errors.New("no such device: load the module kvm_intel or kvm_amd, or use --host emulated")
	ErrDenied     = errors.New("no permission: add the user to the device's group (usermod -aG kvm USER), or use --host emulated")
	ErrNoHardware = errors.New("no virtualization behind the device: enable VMX or SVM in the firmware or nesting in the outer hypervisor, or use --host emulated")
	ErrAPIVersion = errors.New("KVM API is not version 12, the only stable one: update the host kernel")
	ErrNotKVM     = errors.New("not a KVM device: name the right one, usually /dev/kvm")
)

// ErrKicked is what Run returns after a Kick. The guest's state is whole and
// Run may be called again.
var ErrKicked = errors.New("kvm: virtual processor kicked")

// ErrRunPage reports a run page that contradicts linux/kvm.h.
var ErrRunPage = errors.New("kvm: malformed run page")

// openError gives the errno of an open or of the first request its meaning.
func openError(path string, errno error) error {
	for _, c := range []struct {
		kind   error
		errnos []unix.Errno
	}{
		{ErrMissing, []unix.Errno{unix.ENOENT, unix.ENOTDIR}},
		{ErrDenied, []unix.Errno{unix.EACCES, unix.EPERM}},
		{ErrNoHardware, []unix.Errno{unix.ENODEV, unix.ENXIO}},
		{ErrNotKVM, []unix.Errno{unix.ENOTTY, unix.EISDIR, unix.EINVAL}},
	} {
		for _, e := range c.errnos {
			if errors.Is(errno, e) {
				return fmt.Errorf("%s: %w (%w)", path, c.kind, e)
			}
		}
	}
	return fmt.Errorf("%s: open: %w", path, errno)
}
