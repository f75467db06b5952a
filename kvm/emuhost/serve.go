package emuhost

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hvpost/hvpost/kvm/emuhost/wire"
)

// serveVar holds the daemon's serveConfig as JSON.
const serveVar = "HVPOST_EMUHOST_SERVE"

// File descriptors that the daemon inherits from Up.
const (
	readyFD    = 3 // it writes one line of JSON, a ready, there
	lockFD     = 4 // the instance's lock
	lifelineFD = 5 // with Lifeline: at its end of file the daemon ends
)

// serveConfig is what the daemon needs to know.
type serveConfig struct {
	Base        string        `json:"base"`
	Name        string        `json:"name"`
	QEMU        string        `json:"qemu"`
	QEMUVersion string        `json:"qemu_version"`
	Firmware    string        `json:"firmware"`
	Kernel      string        `json:"kernel"`
	Append      string        `json:"append"`
	MemoryMiB   int           `json:"memory_mib"`
	TSCKHz      uint64        `json:"tsc_khz"`      // zero: unknown
	IdleTimeout time.Duration `json:"idle_timeout"` // negative: never
	BootTimeout time.Duration `json:"boot_timeout"`
	Lifeline    bool          `json:"lifeline"`
	Started     time.Time     `json:"started"`
}

// ready is the daemon's only line to who started it.
type ready struct {
	Status *Status `json:"status,omitempty"`
	Error  string  `json:"error,omitempty"`
}

// Status describes a running emulated host.
type Status struct {
	Name        string    `json:"name"`
	PID         int       `json:"pid"` // of the daemon
	QEMUPID     int       `json:"qemu_pid"`
	Socket      string    `json:"socket"`
	Xfer        string    `json:"xfer"` // the exchange directory
	Log         string    `json:"log"`
	Protocol    int       `json:"protocol"`
	QEMUVersion string    `json:"qemu_version"`
	Kernel      string    `json:"kernel"` // release inside
	MemoryMiB   int       `json:"memory_mib"`
	Started     time.Time `json:"started"`
	BootSeconds float64   `json:"boot_seconds"`
	Uptime      float64   `json:"uptime_seconds"`
	IdleTimeout float64   `json:"idle_timeout_seconds"` // negative: never
	Commands    uint64    `json:"commands"`             // asked for since it started
	Running     int       `json:"running"`              // of these, not ended yet
}

// daemon owns one emulated host.
type daemon struct {
	cfg      serveConfig
	inst     instance
	log      *logFile
	qemu     *qemu
	link     *wire.Writer
	kernel   string
	booted   time.Duration
	busy     chan struct{} // has room for one; filled when a command begins
	stopOnce sync.Once
	stopCh   chan struct{} // closed by stop
	alone    chan struct{} // closed when the lifeline breaks
	clients  sync.WaitGroup

	mu       sync.Mutex
	why      error             // under mu; why it stops
	sessions map[uint32]*relay // under mu
	next     uint32            // under mu
	ran      uint64            // under mu
	idle     *time.Timer       // under mu; nil: never
	conns    map[io.Closer]struct{}
	closing  bool // under mu; no more connections
}

// Serve is the daemon: the process that Up starts. It returns when the emulated host has ended and nothing is left of
// it. An error means that it did not end because someone wished so.
func Serve(ctx context.Context) error {
	text, ok := os.LookupEnv(serveVar)
	if !ok {
		return errors.New("emulated host: the daemon is started by \"host up\", not by hand")
	}
	os.Unsetenv(serveVar)
	readyFile := os.NewFile(readyFD, "ready")
	unix.CloseOnExec(readyFD)
	unix.CloseOnExec(lockFD)
	unix.CloseOnExec(lifelineFD)
	var cfg serveConfig
	if err := json.Unmarshal([]byte(text), &cfg); err != nil {
		return fmt.Errorf("emulated host: %s: %w", serveVar, err)
	}
	inst := instance{cfg.Base, cfg.Name}
	lock := &lockFile{f: os.NewFile(lockFD, inst.lock())}
	unix.Umask(0o077)

	d := &daemon{
		busy: make(chan struct{}, 1),
		cfg:  cfg, inst: inst, stopCh: make(chan struct{}), alone: make(chan struct{}),
		sessions: map[uint32]*relay{}, conns: map[io.Closer]struct{}{},
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT)
	signal.Ignore(unix.SIGHUP, unix.SIGPIPE)
	go func() {
		select {
		case <-signals:
		case <-ctx.Done():
		}
		d.stop(nil)
	}()
	if cfg.Lifeline {
		go func() {
			_, _ = io.Copy(io.Discard, os.NewFile(lifelineFD, "lifeline"))
			close(d.alone)
			d.stop(nil)
		}()
	}
	err := d.run(readyFile)
	if e := inst.clean(); err == nil {
		err = e
	}
	if cfg.Lifeline {
		os.Remove(inst.startLock()) // of an Up that was killed; the name does not come again
	}
	if err == nil || cfg.Lifeline && d.lost() {
		inst.removeLogs()
	}
	lock.unlock()
	return err
}

// lost reports whether whom a private instance belonged to is gone.
func (d *daemon) lost() bool {
	select {
	case <-d.alone:
		return true
	default:
		return false
	}
}

// stop begins the end of the daemon; the first reason counts, nil is a wish.
func (d *daemon) stop(why error) {
	d.stopOnce.Do(func() {
		d.mu.Lock()
		d.why = why
		d.mu.Unlock()
		close(d.stopCh)
	})
}

// run boots, serves, and takes everything down.
func (d *daemon) run(readyFile *os.File) (err error) {
	tell := func(r ready) {
		p, e := json.Marshal(r)
		if e == nil {
			_, _ = readyFile.Write(append(p, '\n')) // who does not wait any more need not know
		}
		readyFile.Close()
	}
	if d.log, err = openLog(d.inst.log()); err != nil {
		tell(ready{Error: err.Error()})
		return err
	}
	defer d.log.Close()
	logPipe, logDone, err := d.log.pipeTo()
	if err != nil {
		tell(ready{Error: err.Error()})
		return err
	}
	d.qemu, err = startQEMU(d.cfg, logPipe)
	logPipe.Close()
	if err != nil {
		tell(ready{Error: err.Error()})
		return err
	}
	consoleDone := make(chan struct{})
	go func() {
		defer close(consoleDone)
		_, _ = io.Copy(d.log, d.qemu.console) // ends with QEMU
	}()
	defer func() {
		d.qemu.kill()
		d.qemu.link.Close()
		<-logDone
		<-consoleDone
		d.qemu.console.Close()
	}()

	frames := wire.NewReader(d.qemu.link)
	d.link = wire.NewWriter(d.qemu.link)
	if err := d.boot(frames); err != nil {
		// QEMU's last words may still be on their way.
		d.qemu.kill()
		<-logDone
		<-consoleDone
		if l := d.log.lastLines(); l != "" {
			err = fmt.Errorf("%w; it said: %s", err, l)
		}
		err = fmt.Errorf("%w; log: %s", err, d.inst.log())
		tell(ready{Error: err.Error()})
		return err
	}
	os.Remove(d.inst.initrd()) // it is in the emulated host's memory now
	l, err := listen(d.inst.socket())
	if err != nil {
		err = fmt.Errorf("socket: %w", err)
		tell(ready{Error: err.Error()})
		return err
	}
	var bg sync.WaitGroup
	bg.Go(func() { d.readLink(frames) })
	bg.Go(func() { d.accept(l) })
	bg.Go(d.tick)
	bg.Go(func() {
		select {
		case <-d.qemu.done:
			<-consoleDone
			d.stop(fmt.Errorf("QEMU ended: %w; it said: %s", d.qemu.err, d.log.lastLines()))
		case <-d.stopCh:
		}
	})
	d.armIdle()
	tell(ready{Status: d.status()})

	<-d.stopCh
	os.Remove(d.inst.socket()) // nobody finds it any more
	l.Close()
	d.mu.Lock()
	err = d.why
	d.closing = true
	if d.idle != nil {
		d.idle.Stop()
	}
	d.mu.Unlock()
	ended := d.endSessions(err)
	d.powerOff()
	flushed := time.NewTimer(time.Second) // a client that does not read does not hold us up
	for _, r := range ended {
		select {
		case <-r.done:
		case <-flushed.C:
			flushed.Reset(0)
		}
	}
	flushed.Stop()
	d.qemu.link.Close() // ends readLink
	d.mu.Lock()
	for c := range d.conns {
		c.Close() // ends the clients' goroutines
	}
	d.mu.Unlock()
	d.clients.Wait()
	bg.Wait()
	return err
}

// tickInterval is how long a lost timer interrupt may hold everything up.
const tickInterval = 100 * time.Millisecond

// tick interrupts the emulated CPU now and then while commands run. Under nested guests QEMU's emulation was seen to
// lose the interrupt of the host kernel's only timer, about once in twenty boots; with nothing else going on, the
// kernel then sleeps for ever, with every timer in it. Any interrupt makes it look at its timers again.
func (d *daemon) tick() {
	t := time.NewTicker(tickInterval)
	defer t.Stop()
	for {
		t.Stop()
		select {
		case <-d.busy:
		case <-d.stopCh:
			return
		}
		t.Reset(tickInterval)
		for d.running() > 0 {
			select {
			case <-t.C:
			case <-d.stopCh:
				return
			}
			if d.link.Write(wire.Frame{Type: wire.TypeTick}) != nil {
				return // readLink says why
			}
		}
	}
}

// running is the number of commands that have not ended.
func (d *daemon) running() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.sessions)
}

// readHello reads a greeting of PID 1.
func readHello(r *wire.Reader) (h wire.Hello, err error) {
	f, err := r.Next()
	if err != nil {
		return h, err
	}
	if f.Type != wire.TypeHello {
		return h, fmt.Errorf("%w: %v instead of hello", wire.ErrFrame, f.Type)
	}
	return h, f.Decode(&h)
}

// boot greets PID 1 and waits until commands can run.
func (d *daemon) boot(frames *wire.Reader) error {
	type answer struct {
		h   wire.Hello
		err error
	}
	ch := make(chan answer, 1)
	go func() {
		var a answer
		if a.h, a.err = readHello(frames); a.err == nil {
			a.err = d.link.Write(wire.JSON(0, wire.TypeHello, wire.Hello{
				Version: wire.Version, Name: d.cfg.Name, Xfer: d.inst.xfer(), Views: Views, Clock: time.Now().UnixNano(),
			}))
		}
		if a.err == nil {
			a.h, a.err = readHello(frames)
		}
		ch <- a
	}()
	timeout := time.NewTimer(d.cfg.BootTimeout)
	defer timeout.Stop()
	// Whatever ends the wait but an answer ends QEMU next, and that the goroutine.
	select {
	case a := <-ch:
		switch {
		case a.err == io.EOF || errors.Is(a.err, unix.ECONNRESET) || errors.Is(a.err, unix.EPIPE):
			<-d.qemu.done
			return fmt.Errorf("did not boot: QEMU: %w", d.qemu.err)
		case a.err != nil:
			return fmt.Errorf("did not boot: %w", a.err)
		case a.h.Error != "":
			return fmt.Errorf("did not boot: %s", a.h.Error)
		case a.h.Version != wire.Version:
			return fmt.Errorf("did not boot: PID 1 speaks protocol %d, not %d", a.h.Version, wire.Version)
		}
		d.kernel = a.h.Kernel
		d.booted = time.Since(d.cfg.Started)
		return nil
	case <-d.qemu.done:
		return fmt.Errorf("did not boot: QEMU: %w", d.qemu.err)
	case <-timeout.C:
		return fmt.Errorf("did not boot within %v", d.cfg.BootTimeout)
	case <-d.stopCh:
		return errors.New("stopped while it booted")
	}
}

// powerOff asks PID 1 to switch off, which takes some 50 ms, and ends QEMU in any case.
func (d *daemon) powerOff() {
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_ = d.link.Write(wire.Frame{Type: wire.TypeShutdown}) // may wait for a PID 1 that hangs, until the kill
	}()
	t := time.NewTimer(3 * time.Second)
	defer t.Stop()
	select {
	case <-d.qemu.done:
	case <-t.C:
	}
	d.qemu.kill()
	<-sent
}

// status returns the present state.
func (d *daemon) status() *Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	return &Status{
		Name: d.cfg.Name, PID: os.Getpid(), QEMUPID: d.qemu.pid,
		Socket: d.inst.socket(), Xfer: d.inst.xfer(), Log: d.inst.log(),
		Protocol: wire.Version, QEMUVersion: d.cfg.QEMUVersion, Kernel: d.kernel, MemoryMiB: d.cfg.MemoryMiB,
		Started: d.cfg.Started, BootSeconds: d.booted.Seconds(), Uptime: time.Since(d.cfg.Started).Seconds(),
		IdleTimeout: d.cfg.IdleTimeout.Seconds(), Commands: d.ran, Running: len(d.sessions),
	}
}

// armIdle starts the time without commands.
func (d *daemon) armIdle() {
	if d.cfg.IdleTimeout <= 0 {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.idle = time.AfterFunc(d.cfg.IdleTimeout, func() {
		d.mu.Lock()
		busy := len(d.sessions) > 0 // a command that came as the time ended
		d.mu.Unlock()
		if !busy {
			d.stop(nil)
		}
	})
}

// logf notes something in the log.
func (d *daemon) logf(format string, args ...any) {
	fmt.Fprintf(d.log, "hvpost: "+strings.TrimSuffix(format, "\n")+"\n", args...)
}
