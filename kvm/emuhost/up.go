package emuhost

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hvpost/hvpost/kvm/emuhost/wire"
)

// Host is a running emulated host.
type Host struct {
	Status  Status
	Started bool // by this Up

	lifeline *os.File // of a private instance
	inst     instance
}

// Up returns the emulated host of cfg's name and starts it when it does not run. It goes on running when this process
// ends, until Down, or until it has had no command for cfg.IdleTimeout.
func Up(ctx context.Context, cfg Config) (*Host, error) { return up(ctx, cfg, false) }

func up(ctx context.Context, cfg Config, private bool) (*Host, error) {
	if Inside() != "" {
		return nil, fmt.Errorf("emulated host: %w (%s)", ErrInside, Inside())
	}
	memory := cfg.MemoryMiB // zero: any will do
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	i := instance{cfg.RunDir, cfg.Name}
	if err := makeBase(i.base); err != nil {
		return nil, err
	}
	sweep(i.base)
	starting, err := waitLock(ctx, i.startLock())
	if err != nil {
		return nil, err
	}
	defer starting.unlock()
	if st, err := status(ctx, i); err == nil {
		if st.MemoryMiB < memory {
			return nil, fmt.Errorf("emulated host %s runs with %d MiB of memory, not %d; end it first with: host down", i.name, st.MemoryMiB, memory)
		}
		cfg.Logf("%srunning in the emulated host", reason(cfg))
		return &Host{Status: *st, inst: i}, nil
	} else if !errors.Is(err, ErrNotUp) {
		return nil, err
	}
	// Nobody else starts it, nobody listens: a holder of the lock is about to end.
	ending, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	lock, err := waitLock(ending, i.lock())
	if err != nil {
		if ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
			err = errors.New("its old daemon does not end; end it with: host down")
		}
		return nil, fmt.Errorf("emulated host %s: %w", i.name, err)
	}
	h, err := start(ctx, cfg, i, lock, private)
	if err != nil {
		if e := i.clean(); e != nil {
			err = errors.Join(err, e)
		}
		lock.unlock()
		return nil, err
	}
	lock.handOver()
	cfg.Logf("%srunning in the emulated host (booted in %.1f s)", reason(cfg), h.Status.BootSeconds)
	return h, nil
}

func reason(cfg Config) string {
	if cfg.Reason == "" {
		return ""
	}
	return "no usable /dev/kvm (" + cfg.Reason + "); "
}

// start starts a daemon. The instance's lock is held; a daemon that starts well has it in the end.
func start(ctx context.Context, cfg Config, i instance, lock *lockFile, private bool) (*Host, error) {
	begun := time.Now()
	tsc := make(chan uint64, 1)
	go func() { tsc <- tscKHz() }() // while the rest is made ready
	qemu, err := findQEMU(cfg.QEMU)
	if err != nil {
		return nil, err
	}
	version, err := qemuVersion(ctx, qemu)
	if err != nil {
		return nil, err
	}
	if cfg.Kernel == nil {
		return nil, errors.New("emulated host: no kernel configured")
	}
	k, err := cfg.Kernel(ctx)
	if err != nil {
		return nil, fmt.Errorf("emulated host: kernel: %w", err)
	}
	vmlinuz, err := filepath.Abs(k.Vmlinuz)
	if err == nil {
		_, err = os.Stat(vmlinuz)
	}
	if err != nil {
		return nil, fmt.Errorf("emulated host: kernel: %w", err)
	}
	if err := i.clean(); err != nil {
		return nil, err
	}
	for _, dir := range []string{i.dir(), i.xfer()} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return nil, fmt.Errorf("emulated host: %w", err)
		}
	}
	if err := writeInitrd(i.initrd(), cfg.Self, k.Modules); err != nil {
		return nil, err
	}
	sc := serveConfig{
		Base: i.base, Name: i.name, QEMU: qemu, QEMUVersion: version, Kernel: vmlinuz, Append: cfg.Append,
		MemoryMiB: cfg.MemoryMiB, IdleTimeout: cfg.IdleTimeout, BootTimeout: cfg.BootTimeout,
		Lifeline: private, Started: begun, TSCKHz: <-tsc,
	}
	if _, err := os.Stat(firmware); err == nil {
		sc.Firmware = firmware
	}
	text, err := json.Marshal(sc)
	if err != nil {
		return nil, fmt.Errorf("emulated host: %w", err)
	}
	readyR, readyW, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("emulated host: %w", err)
	}
	defer readyR.Close()
	defer readyW.Close()
	h := &Host{Started: true, inst: i}
	cmd := exec.Command(cfg.Self, append(append([]string(nil), cfg.ServeArgs...), "--name", i.name)...)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), serveVar+"="+string(text))
	cmd.ExtraFiles = []*os.File{readyW, lock.f}
	var lifelineR *os.File
	if private {
		if lifelineR, h.lifeline, err = os.Pipe(); err != nil {
			return nil, fmt.Errorf("emulated host: %w", err)
		}
		defer lifelineR.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, lifelineR)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // no signals of the terminal
	if err := cmd.Start(); err != nil {
		h.release()
		return nil, fmt.Errorf("emulated host: start %s: %w", cfg.Self, err)
	}
	go func() { _ = cmd.Wait() }() // leaves no zombie when this process lives longer; ends with the daemon
	readyW.Close()
	stop := context.AfterFunc(ctx, func() {
		_ = cmd.Process.Signal(unix.SIGTERM) // then it closes its end
	})
	defer stop()
	var r ready
	line, err := bufio.NewReader(readyR).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &r)
	}
	switch {
	case ctx.Err() != nil:
		err = ctx.Err()
	case err == io.EOF:
		err = fmt.Errorf("emulated host: %s ended without a word; does its main call emuhost.Intercept?", cfg.Self)
	case err != nil:
		err = fmt.Errorf("emulated host: %w", err)
	case r.Error != "":
		err = fmt.Errorf("emulated host %s: %s", i.name, r.Error)
	case r.Status == nil:
		err = errors.New("emulated host: its daemon says nothing")
	}
	if err != nil {
		_ = cmd.Process.Signal(unix.SIGTERM) // ended by itself, as a rule
		h.release()
		return nil, err
	}
	h.Status = *r.Status
	return h, nil
}

// release lets a private instance end.
func (h *Host) release() {
	if h.lifeline != nil {
		h.lifeline.Close()
	}
}

// Exec runs a command in h; see the function Exec.
func (h *Host) Exec(ctx context.Context, cmd Cmd) (int, error) {
	return Exec(ctx, h.Status.Socket, cmd)
}

// Down ends h and waits until nothing of it is left.
func (h *Host) Down(ctx context.Context) error {
	err := down(ctx, h.inst)
	h.release()
	return err
}

// oncePrefix begins the names of private instances.
const oncePrefix = "once-"

// RunOnce boots an emulated host of its own, runs one command in it, and ends it: nothing is left, even when this
// process is killed meanwhile. cfg.Name is ignored. before, unless nil, is called when the host is up, and may change
// the command (see Outputs); after, unless nil, when the command has ended and the host has not.
func RunOnce(ctx context.Context, cfg Config, cmd Cmd, before func(*Host, *Cmd) error, after func(*Host) error) (code int, err error) {
	cfg.Name = fmt.Sprintf("%s%d-%d", oncePrefix, os.Getpid(), time.Now().UnixNano()%1e9)
	h, err := up(ctx, cfg, true)
	if err != nil {
		return wire.CodeHost, err
	}
	defer func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
		defer cancel()
		if e := h.Down(end); e != nil && err == nil {
			code, err = wire.CodeHost, e
		}
	}()
	if before != nil {
		if err := before(h, &cmd); err != nil {
			return wire.CodeHost, err
		}
	}
	code, err = h.Exec(ctx, cmd)
	if after != nil {
		if e := after(h); e != nil && err == nil {
			code, err = wire.CodeHost, e
		}
	}
	return code, err
}

// Get returns the state of the emulated host of a name, in cfg.RunDir. ErrNotUp means that there is none.
func Get(ctx context.Context, cfg Config) (*Host, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	i := instance{cfg.RunDir, cfg.Name}
	st, err := status(ctx, i)
	if err != nil {
		return nil, err
	}
	return &Host{Status: *st, inst: i}, nil
}

// List returns the states of all emulated hosts in cfg.RunDir, and errors of those that do not answer.
func List(ctx context.Context, cfg Config) ([]Status, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	ns, err := names(cfg.RunDir)
	if err != nil {
		return nil, err
	}
	var all []Status
	var errs []error
	for _, n := range ns {
		st, err := status(ctx, instance{cfg.RunDir, n})
		if errors.Is(err, ErrNotUp) {
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		all = append(all, *st)
	}
	return all, errors.Join(errs...)
}

func status(ctx context.Context, i instance) (*Status, error) {
	// A daemon that is stopped, or of an older version, must not hang the caller.
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	conn, r, h, err := connect(ctx, i.socket())
	if errors.Is(err, ErrNotUp) {
		return nil, fmt.Errorf("emulated host %s: %w", i.name, ErrNotUp)
	}
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if h.Version != wire.Version {
		return nil, fmt.Errorf("emulated host %s was started by another version of this program (protocol %d, want %d); end it with: host down",
			i.name, h.Version, wire.Version)
	}
	if err := wire.NewWriter(conn).Write(wire.Frame{Type: wire.TypeStatus}); err != nil {
		return nil, fmt.Errorf("emulated host %s: %w", i.name, err)
	}
	f, err := r.Next()
	if err == io.EOF {
		return nil, fmt.Errorf("emulated host %s: %w", i.name, ErrNotUp)
	}
	if err != nil {
		return nil, fmt.Errorf("emulated host %s: %w", i.name, err)
	}
	st := new(Status)
	if err := f.Decode(st); err != nil {
		return nil, fmt.Errorf("emulated host %s: %w", i.name, err)
	}
	return st, nil
}

// Down ends the emulated host of cfg's name and waits until nothing of it is left. Commands in it are killed. When it
// does not run this is ErrNotUp, and what a killed one left is removed.
func Down(ctx context.Context, cfg Config) error {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return err
	}
	if _, err := os.Stat(cfg.RunDir); errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("emulated host %s: %w", cfg.Name, ErrNotUp)
	}
	if err := makeBase(cfg.RunDir); err != nil {
		return err
	}
	sweep(cfg.RunDir)
	return down(ctx, instance{cfg.RunDir, cfg.Name})
}

// Steps of Down, each longer than the daemon needs for it.
const (
	askTimeout  = 8 * time.Second
	termTimeout = 5 * time.Second
)

func down(ctx context.Context, i instance) error {
	lock, err := tryLock(i.lock())
	if err != nil {
		return err
	}
	if lock != nil {
		defer lock.unlock()
		if err := i.clean(); err != nil {
			return err
		}
		i.removeLogs()
		return fmt.Errorf("emulated host %s: %w", i.name, ErrNotUp)
	}
	// Ask, then order, then force.
	ask, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if conn, _, _, err := connect(ask, i.socket()); err == nil {
		_ = wire.NewWriter(conn).Write(wire.Frame{Type: wire.TypeShutdown})
		lock, err = waitLock(ask, i.lock())
		conn.Close()
		if err == nil {
			lock.unlock()
			return nil
		}
	}
	for _, sig := range []syscall.Signal{unix.SIGTERM, unix.SIGKILL} {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		pid, err := holder(i.lock())
		if err == nil {
			err = unix.Kill(pid, sig)
		}
		if err != nil && err != unix.ESRCH {
			return fmt.Errorf("emulated host %s: end its daemon: %w", i.name, err)
		}
		wait, cancel := context.WithTimeout(ctx, termTimeout)
		lock, err = waitLock(wait, i.lock())
		cancel()
		if err == nil {
			defer lock.unlock()
			return i.clean()
		}
	}
	return fmt.Errorf("emulated host %s: its daemon does not end", i.name)
}

// holder finds the daemon that has a lock. /proc/locks names the process that took it, which was Up; only the
// descriptor is left to the daemon.
func holder(path string) (int, error) {
	want, err := os.Stat(path)
	if err != nil {
		return 0, unix.ESRCH // it has just ended
	}
	ps, err := os.ReadDir("/proc")
	if err != nil {
		return 0, err
	}
	for _, p := range ps {
		pid, err := strconv.Atoi(p.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if err != nil || !strings.Contains("\x00"+string(text), "\x00"+serveVar+"=") {
			continue
		}
		have, err := os.Stat(fmt.Sprintf("/proc/%d/fd/%d", pid, lockFD))
		if err == nil && os.SameFile(have, want) {
			return pid, nil
		}
	}
	return 0, unix.ESRCH
}
