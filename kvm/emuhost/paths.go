package emuhost

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// DefaultRunDir is where instances keep their sockets and locks: hvpost/emuhost in $XDG_RUNTIME_DIR, or in the
// user's cache directory where there is none.
func DefaultRunDir() (string, error) {
	if d := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(d) {
		return filepath.Join(d, "hvpost", "emuhost"), nil
	}
	d, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("emulated host: no run-time directory; set XDG_RUNTIME_DIR: %w", err)
	}
	return filepath.Join(d, "hvpost", "run", "emuhost"), nil
}

// instance is the place of one emulated host in the run-time directory. The directory dir exists while it runs; the
// locks exist while held, and the logs after a failure.
type instance struct{ base, name string }

func (i instance) dir() string       { return filepath.Join(i.base, i.name) }
func (i instance) socket() string    { return filepath.Join(i.dir(), "sock") }
func (i instance) xfer() string      { return filepath.Join(i.dir(), "xfer") }
func (i instance) initrd() string    { return filepath.Join(i.dir(), "initrd") }
func (i instance) lock() string      { return filepath.Join(i.base, i.name+".lock") }  // held while it runs
func (i instance) startLock() string { return filepath.Join(i.base, i.name+".start") } // held while it is started
func (i instance) log() string       { return filepath.Join(i.base, i.name+".log") }

// makeBase makes the run-time directory, which only its owner may enter: who can connect to a socket in it can run
// commands as the owner.
func makeBase(base string) error {
	if err := os.MkdirAll(base, 0o700); err != nil {
		return fmt.Errorf("emulated host: run-time directory: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Stat(base, &st); err != nil {
		return fmt.Errorf("emulated host: run-time directory %s: %w", base, err)
	}
	if int(st.Uid) != os.Geteuid() || st.Mode&0o077 != 0 {
		return fmt.Errorf("emulated host: run-time directory %s is not private (owner %d, mode %#o); chmod 700 it, or set XDG_RUNTIME_DIR",
			base, st.Uid, st.Mode&0o777)
	}
	return nil
}

// clean removes what a finished instance left, or one that was killed. The lock must be held.
func (i instance) clean() error {
	if err := os.RemoveAll(i.dir()); err != nil {
		return fmt.Errorf("emulated host %s: %w", i.name, err)
	}
	return nil
}

// removeLogs forgets the logs of an instance that ended well.
func (i instance) removeLogs() {
	os.Remove(i.log())
	os.Remove(i.log() + ".1")
}

// names returns the instances that have a directory, running or not.
func names(base string) ([]string, error) {
	es, err := os.ReadDir(base)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("emulated host: run-time directory: %w", err)
	}
	var ns []string
	for _, e := range es {
		if e.IsDir() && CheckName(e.Name()) == nil {
			ns = append(ns, e.Name())
		}
	}
	return ns, nil
}

// sweep removes what killed daemons left of instances whose names will not come again.
func sweep(base string) {
	ns, err := names(base)
	if err != nil {
		return // the caller meets the same error in what it does
	}
	for _, n := range ns {
		if !strings.HasPrefix(n, oncePrefix) {
			continue
		}
		i := instance{base, n}
		l, err := tryLock(i.lock())
		if err != nil || l == nil {
			continue
		}
		if i.clean() == nil {
			i.removeLogs()
		}
		l.unlock()
	}
}

// lockFile is an flock(2) on a file that exists only while someone holds or awaits it.
type lockFile struct {
	f    *os.File
	once sync.Once
}

// tryLock takes a lock, or returns nil when it is held.
func tryLock(path string) (*lockFile, error) { return flock(path, unix.LOCK_EX|unix.LOCK_NB) }

func flock(path string, how int) (*lockFile, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, fmt.Errorf("emulated host: lock: %w", err)
		}
		for {
			err = unix.Flock(int(f.Fd()), how)
			if err != unix.EINTR {
				break
			}
		}
		if err == unix.EWOULDBLOCK {
			f.Close()
			return nil, nil
		}
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("emulated host: lock %s: %w", path, err)
		}
		// The holder before us removed the file while we waited for it: then this is a lock on nothing.
		have, err1 := f.Stat()
		want, err2 := os.Stat(path)
		if err1 == nil && err2 == nil && os.SameFile(have, want) {
			return &lockFile{f: f}, nil
		}
		f.Close()
	}
}

// waitLock waits for a lock until the context ends.
func waitLock(ctx context.Context, path string) (*lockFile, error) {
	if l, err := tryLock(path); l != nil || err != nil {
		return l, err
	}
	type result struct {
		l   *lockFile
		err error
	}
	ch := make(chan result)
	go func() {
		// flock cannot be interrupted: when nobody waits any more this ends with the lock's next release.
		l, err := flock(path, unix.LOCK_EX)
		select {
		case ch <- result{l, err}:
		case <-ctx.Done():
			if l != nil {
				l.unlock()
			}
		}
	}()
	select {
	case r := <-ch:
		return r.l, r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// unlock removes and releases the lock. More calls do nothing.
func (l *lockFile) unlock() {
	l.once.Do(func() {
		os.Remove(l.f.Name())
		l.f.Close()
	})
}

// handOver gives the lock up here: a process that inherited the descriptor has it now.
func (l *lockFile) handOver() {
	l.once.Do(func() { l.f.Close() })
}

// maxSocketPath is what fits into sockaddr_un with its final zero.
const maxSocketPath = 107

// shortPath runs f with a path that names the same socket and fits into an address.
func shortPath(path string, f func(string) error) error {
	if len(path) <= maxSocketPath {
		return f(path)
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer d.Close()
	return f(fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), filepath.Base(path)))
}

// dial connects to a daemon. ErrNotUp means that none listens.
func dial(ctx context.Context, socket string) (*net.UnixConn, error) {
	var c net.Conn
	err := shortPath(socket, func(p string) (err error) {
		d := net.Dialer{Timeout: 10 * time.Second} // it is local; only a stopped daemon takes longer
		c, err = d.DialContext(ctx, "unix", p)
		return err
	})
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ECONNREFUSED):
		return nil, ErrNotUp
	case err != nil:
		return nil, err
	}
	return c.(*net.UnixConn), nil
}

// listen makes a daemon's socket.
func listen(socket string) (*net.UnixListener, error) {
	var l *net.UnixListener
	err := shortPath(socket, func(p string) (err error) {
		l, err = net.ListenUnix("unix", &net.UnixAddr{Name: p, Net: "unix"})
		return err
	})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // the path may be one for a moment only; the whole directory goes anyway
	return l, nil
}
