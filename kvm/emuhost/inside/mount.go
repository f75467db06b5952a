package inside

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// cgroupDir holds one control group per running command.
	cgroupDir = "/cgroup"

	// xferMount is where PID 1 has the writable share; commands have it under its real path.
	xferMount = "/xfer"

	// viewDir is where a command's mounts are made, in the namespace of its own.
	viewDir  = "/view"
	viewRoot = viewDir + "/root" // the command's root

	// rootOptions of 9p for the host's root. 512000 bytes is the most the virtio transport takes (125 pages of
	// scatter list). Loose caching is right here and only here, see the package comment.
	rootOptions = "trans=virtio,version=9p2000.L,msize=512000,cache=loose"

	// xferOptions must not cache: the other side reads while we write.
	xferOptions = "trans=virtio,version=9p2000.L,msize=512000,cache=none"
)

type mount struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
}

func (m mount) do() error {
	if err := os.MkdirAll(m.target, 0o755); err != nil {
		return fmt.Errorf("mount %s: %w", m.target, err)
	}
	if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", m.fstype, m.target, err)
	}
	return nil
}

func mountAll(ms []mount) error {
	for _, m := range ms {
		if err := m.do(); err != nil {
			return err
		}
	}
	return nil
}

// mountKernelFS mounts what needs no module.
func mountKernelFS() error {
	if _, err := os.Stat("/proc/self"); err != nil {
		if err := (mount{"proc", "/proc", "proc", 0, ""}).do(); err != nil {
			return err
		}
	}
	return mountAll([]mount{
		{"sysfs", "/sys", "sysfs", 0, ""},
		{"devtmpfs", "/dev", "devtmpfs", 0, "mode=0755"},
	})
}

// mountShared mounts what all commands share.
func mountShared() error {
	err := mountAll([]mount{
		{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0620,ptmxmode=0666"},
		{"shm", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		{"run", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
		{"cgroup2", cgroupDir, "cgroup2", 0, ""},
		// kvm's counters are here.
		{"debugfs", "/sys/kernel/debug", "debugfs", 0, ""},
		{XferTag, xferMount, "9p", unix.MS_NODEV, xferOptions},
	})
	if err != nil {
		return err
	}
	for name, target := range map[string]string{
		"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0", "/dev/stdout": "/proc/self/fd/1", "/dev/stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(target, name); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	for _, dir := range []string{"/run/lock", "/run/user"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	return os.Chmod("/run/lock", 0o1777)
}

// mountView makes a root for a command from the host's i-th mount. The calling thread must be locked to its goroutine
// for good: it enters a mount namespace of its own. errBusy means that an earlier command's mount is not quite gone.
func mountView(i int, xfer string, uid, gid int) error {
	// A mount namespace needs file system attributes of its own, which the flag implies.
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("mount namespace: %w", err)
	}
	err := mountAll([]mount{
		// The root of initramfs is private already; say it, for a mount that spread would live for ever.
		{"", "/", "", unix.MS_REC | unix.MS_PRIVATE, ""},
		{"view", viewDir, "tmpfs", 0, "mode=0755,size=75%"},
		{ViewTag(i), viewDir + "/lower", "9p", unix.MS_RDONLY, rootOptions},
	})
	if err != nil {
		return err
	}
	for _, dir := range []string{"/upper", "/work"} {
		if err := os.Mkdir(viewDir+dir, 0o755); err != nil {
			return err
		}
	}
	err = mountAll([]mount{
		// volatile: the upper layer is memory, there is nothing to sync.
		{"overlay", viewRoot, "overlay", 0, "lowerdir=" + viewDir + "/lower,upperdir=" + viewDir + "/upper,workdir=" + viewDir + "/work,volatile"},
		{"/proc", viewRoot + "/proc", "", unix.MS_BIND | unix.MS_REC, ""},
		{"/sys", viewRoot + "/sys", "", unix.MS_BIND | unix.MS_REC, ""},
		{"/dev", viewRoot + "/dev", "", unix.MS_BIND | unix.MS_REC, ""},
		{"/run", viewRoot + "/run", "", unix.MS_BIND | unix.MS_REC, ""},
	})
	if err != nil {
		return err
	}
	// What XDG_RUNTIME_DIR names when the real host has a session manager.
	own := fmt.Sprintf("/run/user/%d", uid)
	if err := os.Mkdir(own, 0o700); err == nil {
		if err := os.Chown(own, uid, gid); err != nil {
			return err
		}
	} else if !errors.Is(err, os.ErrExist) {
		return err
	}
	// Symbolic links in the path are the host's and lead anywhere, so it is resolved inside the view. It exists
	// there, but for a part below /run.
	target, err := xferTarget(xfer, uid, gid)
	if err != nil {
		return err
	}
	fd, err := openInRoot(target, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return fmt.Errorf("exchange directory %s: %w", xfer, err)
	}
	defer unix.Close(fd)
	if err := unix.Mount(xferMount, fmt.Sprintf("/proc/self/fd/%d", fd), "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount exchange directory %s: %w", xfer, err)
	}
	return nil
}

// xferTarget makes the part of the exchange directory's path that lies in the fresh /run.
func xferTarget(xfer string, uid, gid int) (string, error) {
	xfer = path.Clean(xfer)
	if rest, ok := strings.CutPrefix(xfer, "/var/run/"); ok {
		xfer = "/run/" + rest
	}
	if !strings.HasPrefix(xfer, "/run/") {
		return xfer, nil
	}
	at := "/run"
	for _, part := range strings.Split(strings.TrimPrefix(xfer, "/run/"), "/") {
		at = filepath.Join(at, part)
		switch err := os.Mkdir(at, 0o700); {
		case err == nil:
			if err := os.Chown(at, uid, gid); err != nil {
				return "", err
			}
		case !errors.Is(err, os.ErrExist):
			return "", err
		}
	}
	return xfer, nil
}

// unmountView undoes mountView in the same thread. Nothing of the command may live.
func unmountView() error {
	// With no users left this takes everything down before it returns, the 9p channel included.
	if err := unix.Unmount(viewDir, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount view: %w", err)
	}
	return nil
}

// openInRoot opens a path as a process with the view for its root would.
func openInRoot(name string, flags uint64) (int, error) {
	dir, err := unix.Open(viewRoot, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(dir)
	for {
		fd, err := unix.Openat2(dir, name, &unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
		// EAGAIN: the tree changed while it was walked (openat2(2)).
		if err != unix.EINTR && err != unix.EAGAIN {
			return fd, err
		}
	}
}

var errNotFound = errors.New("command not found")

// lookPath finds a command as execvp(3) in the view would. With a slash in the name the kernel is left to judge it.
func lookPath(name, dir string, env []string) (string, error) {
	if name == "" {
		return "", errNotFound
	}
	if strings.Contains(name, "/") {
		return name, nil
	}
	list := "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			list = v
		}
	}
	var denied error
	for _, d := range filepath.SplitList(list) {
		p := filepath.Join(d, name)
		if !filepath.IsAbs(p) {
			p = filepath.Join(dir, p)
		}
		fd, err := openInRoot(p, unix.O_PATH)
		if err != nil {
			continue
		}
		var st unix.Stat_t
		err = unix.Fstat(fd, &st)
		unix.Close(fd)
		if err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
			continue
		}
		if st.Mode&0o111 != 0 {
			return p, nil
		}
		denied = unix.EACCES
	}
	if denied != nil {
		return "", denied
	}
	return "", errNotFound
}
