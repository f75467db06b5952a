package agent

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/hvpost/hvpost/guest/link"
)

// baseMounts are what programs expect to find. Order matters: /dev/shm is in
// /dev.
var baseMounts = []link.Mount{
	{Source: "devtmpfs", Target: "/dev", Type: "devtmpfs", Options: "nosuid,mode=0755"},
	{Source: "proc", Target: "/proc", Type: "proc", Options: "nosuid,nodev,noexec"},
	{Source: "sysfs", Target: "/sys", Type: "sysfs", Options: "nosuid,nodev,noexec"},
	{Source: "tmpfs", Target: "/run", Type: "tmpfs", Options: "nosuid,nodev,mode=0755"},
	{Source: "tmpfs", Target: "/tmp", Type: "tmpfs", Options: "nosuid,nodev,mode=1777"},
	{Source: "tmpfs", Target: "/dev/shm", Type: "tmpfs", Options: "nosuid,nodev,mode=1777"},
}

// filled reports whether a tmpfs on the target would hide files that the image
// has there: a command and its data may come from the host's /tmp. The image
// itself is in RAM, so nothing is lost without the mount.
func filled(m link.Mount) bool {
	if m.Type != "tmpfs" {
		return false
	}
	entries, err := os.ReadDir(m.Target)
	return err == nil && len(entries) > 0
}

// mountFlags are the mount options that the kernel takes as flags, mount(2).
// The rest of an option string is the file system's.
var mountFlags = map[string]struct {
	flag  uintptr
	clear bool
}{
	"defaults": {}, "auto": {}, "noauto": {}, "nofail": {}, "user": {}, "nouser": {}, "_netdev": {},
	"ro": {unix.MS_RDONLY, false}, "rw": {unix.MS_RDONLY, true},
	"nosuid": {unix.MS_NOSUID, false}, "suid": {unix.MS_NOSUID, true},
	"nodev": {unix.MS_NODEV, false}, "dev": {unix.MS_NODEV, true},
	"noexec": {unix.MS_NOEXEC, false}, "exec": {unix.MS_NOEXEC, true},
	"sync": {unix.MS_SYNCHRONOUS, false}, "async": {unix.MS_SYNCHRONOUS, true},
	"dirsync": {unix.MS_DIRSYNC, false},
	"noatime": {unix.MS_NOATIME, false}, "atime": {unix.MS_NOATIME, true},
	"nodiratime": {unix.MS_NODIRATIME, false}, "diratime": {unix.MS_NODIRATIME, true},
	"relatime": {unix.MS_RELATIME, false}, "norelatime": {unix.MS_RELATIME, true},
	"strictatime": {unix.MS_STRICTATIME, false}, "lazytime": {unix.MS_LAZYTIME, false},
	"remount": {unix.MS_REMOUNT, false}, "silent": {unix.MS_SILENT, false},
	"bind": {unix.MS_BIND, false}, "rbind": {unix.MS_BIND | unix.MS_REC, false}, "move": {unix.MS_MOVE, false},
	"private": {unix.MS_PRIVATE, false}, "rprivate": {unix.MS_PRIVATE | unix.MS_REC, false},
	"shared": {unix.MS_SHARED, false}, "rshared": {unix.MS_SHARED | unix.MS_REC, false},
	"slave": {unix.MS_SLAVE, false}, "rslave": {unix.MS_SLAVE | unix.MS_REC, false},
	"unbindable": {unix.MS_UNBINDABLE, false},
}

// ParseMountOptions splits a mount option string as in fstab into the flags of
// mount(2) and the data for the file system.
func ParseMountOptions(s string) (flags uintptr, data string) {
	var rest []string
	for _, o := range strings.Split(s, ",") {
		f, known := mountFlags[o]
		switch {
		case o == "":
		case !known:
			rest = append(rest, o)
		case f.clear:
			flags &^= f.flag
		default:
			flags |= f.flag
		}
	}
	return flags, strings.Join(rest, ",")
}

// mount makes the target directory, if need be, and mounts on it. What is
// mounted there already by the same type counts as done.
func mount(m link.Mount) error {
	flags, data := ParseMountOptions(m.Options)
	err := unix.Mount(m.Source, m.Target, m.Type, flags, data)
	if err == unix.ENOENT {
		if st, serr := os.Stat(m.Source); serr == nil && !st.IsDir() && flags&unix.MS_BIND != 0 {
			// A file is bound to a file.
			f, ferr := os.OpenFile(m.Target, os.O_CREATE|os.O_RDONLY, 0o644)
			if ferr != nil {
				return fmt.Errorf("mount %s: %w", m.Target, ferr)
			}
			f.Close()
		} else if merr := os.MkdirAll(m.Target, 0o755); merr != nil {
			return fmt.Errorf("mount %s: %w", m.Target, merr)
		}
		err = unix.Mount(m.Source, m.Target, m.Type, flags, data)
	}
	if err == nil && flags&unix.MS_BIND != 0 && flags&unix.MS_RDONLY != 0 {
		// A bind mount takes no other flags at first, mount(2).
		err = unix.Mount("", m.Target, "", flags|unix.MS_REMOUNT, "")
	}
	if err == unix.EBUSY && m.Source == m.Type {
		return nil
	}
	if err != nil {
		return fmt.Errorf("mount %s on %s (type %q, options %q): %w", m.Source, m.Target, m.Type, m.Options, err)
	}
	return nil
}

// devLinks makes the links in /dev that shells use and devtmpfs does not have.
func devLinks() {
	for name, to := range map[string]string{
		"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0",
		"/dev/stdout": "/proc/self/fd/1", "/dev/stderr": "/proc/self/fd/2",
	} {
		// There already, or no /dev at all, of which a warning was given.
		_ = unix.Symlink(to, name)
	}
}
