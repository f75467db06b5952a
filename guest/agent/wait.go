package agent

import (
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hvpost/hvpost/guest/link"
)

// waitDefault bounds the wait for devices when the job gives no bound. A slow,
// emulated processor needs seconds for what takes a real one milliseconds.
const waitDefault = 15 * time.Second

// uevents is the kernel's announcement of device changes
// (NETLINK_KOBJECT_UEVENT, lib/kobject_uevent.c). Only that something changed
// is of interest, not what.
type uevents struct{ fd int }

func openUevents() (*uevents, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("bind", err)
	}
	return &uevents{fd}, nil
}

func (u *uevents) close() { unix.Close(u.fd) }

// next waits for a change until the deadline and reports whether there was
// one. All changes that are there count as one.
func (u *uevents) next(deadline time.Time) bool {
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return false
		}
		fds := []unix.PollFd{{Fd: int32(u.fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(left.Milliseconds())+1)
		if err == unix.EINTR || err == nil && n == 0 {
			continue
		}
		if err != nil {
			return false
		}
		var buf [4096]byte
		for {
			// An overflow (ENOBUFS) means changes too, and that they are gone.
			if _, err := unix.Read(u.fd, buf[:]); err != nil && err != unix.ENOBUFS {
				return true
			}
		}
	}
}

// waitDevices waits until all of the job's wait list is there, or its time is
// up, and returns what is not.
func waitDevices(job *link.Job, events *uevents) (missing []string) {
	bound := waitDefault
	if job.WaitSeconds > 0 {
		bound = time.Duration(job.WaitSeconds) * time.Second
	}
	deadline := time.Now().Add(bound)
	for missing = job.Wait; ; {
		if missing = absent(missing, "/sys/bus/vmbus/devices"); len(missing) == 0 {
			return nil
		}
		if events == nil || !events.next(deadline) {
			return missing
		}
	}
}

// absent returns which entries of a wait list are not there. vmbus is the
// directory of VMBus devices.
func absent(list []string, vmbus string) (missing []string) {
	var devices []link.Device
	scanned := false
	for _, e := range list {
		if strings.HasPrefix(e, "/") {
			if unix.Access(e, unix.F_OK) != nil {
				missing = append(missing, e)
			}
			continue
		}
		guid := strings.ToLower(strings.Trim(e, "{}"))
		if !scanned {
			devices, scanned = vmbusDevices(vmbus), true
		}
		bound := false
		for _, d := range devices {
			inst := strings.ToLower(strings.Trim(filepath.Base(d.Instance), "{}"))
			bound = bound || d.Driver != "" && (inst == guid || strings.ToLower(d.Class) == guid)
		}
		if !bound {
			missing = append(missing, e)
		}
	}
	return missing
}
