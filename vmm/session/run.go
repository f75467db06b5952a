package session

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/hvpost/hvpost/guest/link"
	"github.com/hvpost/hvpost/kvm"
	"github.com/hvpost/hvpost/vmbus"
	"github.com/hvpost/hvpost/vmbus/ic"
	"github.com/hvpost/hvpost/vmm"
)

const (
	// DefaultGrace is how long a guest gets to shut down when asked to.
	DefaultGrace = 15 * time.Second
	// panicGrace is how long a guest that printed a panic gets to report it
	// through the crash MSRs and to reset. With panic=-1 it takes no time; a
	// kernel told otherwise would hang for ever.
	panicGrace = 3 * time.Second
)

// A run is one Plan being run.
type run struct {
	*Plan
	start    time.Time
	console  *console
	machine  *vmm.Machine
	port     *link.HostPort
	shutdown *ic.Shutdown

	mu     sync.Mutex
	phases Phases
	reason Reason // why this side ended the run, if it did
	detail string
	info   link.Info
	exit   *link.Exit
	agent  bool // it said hello

	transport string // of the agent's link
}

// since returns the milliseconds since the start of the process.
func (r *run) since() float64 {
	return float64(time.Since(r.start).Microseconds()) / 1000
}

// mark records the first time of a phase.
func (r *run) mark(phase *float64) {
	r.mu.Lock()
	if *phase == 0 {
		*phase = r.since()
	}
	r.mu.Unlock()
}

// end stops the machine for a reason of this side's. The first one counts.
func (r *run) end(reason Reason, format string, args ...any) {
	r.mu.Lock()
	first := r.reason == ""
	if first {
		r.reason, r.detail = reason, fmt.Sprintf(format, args...)
	}
	r.mu.Unlock()
	if first {
		r.machine.Stop(string(reason))
	}
}

// Run boots the machine and runs the command. What the guest does is the
// Result; the error is for failures of the host, and even then the Result
// says as much as is known. When Run returns nothing of the run is left.
func (p *Plan) Run(ctx context.Context) (*Result, error) {
	r := &run{Plan: p, start: p.opts.Started}
	r.phases.Prepared = p.prepared
	res := p.result()
	err := r.run(ctx, res)
	r.phases.End = r.since()
	res.BootMS = r.phases
	if err != nil {
		res.Reason, res.Detail = ReasonError, err.Error()
		if IsNoKVM(err) {
			res.Reason = ReasonNoKVM
		}
	}
	return res, err
}

func (r *run) run(ctx context.Context, res *Result) (err error) {
	r.console = &console{w: r.opts.Console}
	if path := r.opts.ConsoleLog; path != "" {
		open := os.Create
		if IsStream(path) {
			open = OpenStream
		}
		f, err := open(path)
		if err != nil {
			return fmt.Errorf("console log: %w", err)
		}
		defer f.Close()
		r.console.file = f
		res.Console = path
	}
	cfg := vmm.Config{
		KVM:             r.opts.KVM,
		Version:         r.opts.Version,
		VPs:             r.opts.CPUs,
		Memory:          r.opts.Memory,
		Load:            r.load,
		Console:         r.console,
		NoVMBus:         r.opts.NoVMBus,
		VMBusMaxVersion: r.vmbusMax(),
		Window:          link.WindowSize,
		Doorbell:        func(v byte) { r.port.Kick(v) },
		Line:            func(b byte) { r.port.Transmit(b) },
		Started:         func() { r.mark(&r.phases.FirstRun) },
	}
	if r.machine, err = vmm.New(cfg); err != nil {
		return err
	}
	defer func() {
		if e := r.machine.Close(); err == nil {
			err = e
		}
	}()
	r.shutdown = new(ic.Shutdown)
	if bus := r.machine.Bus(); bus != nil {
		for _, d := range []vmbus.Device{new(ic.Heartbeat), r.shutdown, &ic.TimeSync{Reference: r.machine.Clock()}} {
			if err := bus.Offer(&timed{d, func() { r.mark(&r.phases.VMBus) }}); err != nil {
				return err
			}
		}
	}
	r.port, err = link.NewHostPort(link.HostPortConfig{
		Memory: r.machine.Window(), GPA: vmm.WindowBase, Size: link.WindowSize, UART: r.machine.Line(),
	})
	if err != nil {
		return err
	}
	r.machine.Line().Room = r.port.ReceiveReady
	host, err := link.NewHost(r.port, link.HostConfig{
		Stdio: link.Stdio{In: r.opts.Stdin, Out: r.opts.Stdout, Err: r.opts.Stderr},
		Hello: func(h link.Hello) {
			r.mark(&r.phases.Agent)
			r.mu.Lock()
			r.agent, r.transport = true, h.Transport
			r.mu.Unlock()
		},
		Started: func(uint64) { r.mark(&r.phases.Command) },
		Info: func(i link.Info) {
			r.mu.Lock()
			r.info = i
			r.mu.Unlock()
		},
	})
	if err != nil {
		return err
	}
	outcome, err := r.watch(ctx, host)
	res.Stats = &outcome.Stats
	res.Exits = outcome.Stats.Exits
	r.account(res, outcome)
	return err
}

// IsNoKVM reports whether err says that this host has no KVM to run on, as
// opposed to one that failed.
func IsNoKVM(err error) bool {
	for _, e := range []error{kvm.ErrMissing, kvm.ErrDenied, kvm.ErrNoHardware, kvm.ErrAPIVersion, kvm.ErrNotKVM, vmm.ErrCapability} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// watch runs the machine with everything that may end it.
func (r *run) watch(ctx context.Context, host *link.Host) (vmm.Outcome, error) {
	linkCtx, stopLink := context.WithCancel(context.Background())
	defer stopLink()
	var wg sync.WaitGroup
	wg.Go(func() { r.serveLink(linkCtx, host) })
	if tty := r.opts.TTY; tty != nil && tty.Resize != nil {
		wg.Go(func() {
			for {
				select {
				case <-linkCtx.Done():
					return
				case s := <-tty.Resize:
					host.Resize(s[0], s[1])
				}
			}
		})
	}
	wg.Go(func() { r.shutDownWith(ctx, linkCtx) })

	boot := time.AfterFunc(r.opts.BootTimeout, func() {
		r.mu.Lock()
		up := r.agent
		r.mu.Unlock()
		if !up {
			r.end(ReasonBootTimeout, "the guest's agent did not answer within %v", r.opts.BootTimeout)
		}
	})
	defer boot.Stop()
	if r.opts.Timeout > 0 {
		t := time.AfterFunc(r.opts.Timeout, func() {
			r.end(ReasonTimeout, "not finished after %v", r.opts.Timeout)
		})
		defer t.Stop()
	}
	panicked := make(chan struct{}, 1)
	r.console.mu.Lock()
	r.console.panicked = func() { panicked <- struct{}{} }
	r.console.mu.Unlock()
	wg.Go(func() {
		select {
		case <-linkCtx.Done():
			return
		case <-panicked:
		}
		select {
		case <-linkCtx.Done():
		case <-time.After(panicGrace):
			r.end(ReasonPanic, "%s", r.console.Panic())
		}
	})

	// The machine's own context is not ctx: a run that is told to stop first
	// asks the guest.
	outcome, err := r.machine.Run(context.Background())
	r.port.Close()
	stopLink()
	wg.Wait()
	return outcome, err
}

// serveLink carries the command's streams until its exit is known.
func (r *run) serveLink(ctx context.Context, host *link.Host) {
	exit, err := host.Run(ctx)
	if err == nil {
		r.mark(&r.phases.Exit)
		r.snapshotBus()
		r.mu.Lock()
		r.exit = &exit
		r.mu.Unlock()
		r.machine.Stop("the command ended")
		return
	}
	if errors.Is(err, link.ErrCorrupt) {
		r.end(ReasonNoResult, "%v", err)
	}
}

// shutDownWith waits for the caller to end the run, asks the guest to shut
// down, and stops it when it has not done so in time.
func (r *run) shutDownWith(ctx, done context.Context) {
	select {
	case <-done.Done():
		return
	case <-ctx.Done():
	}
	why := context.Cause(ctx).Error()
	r.mu.Lock()
	if r.reason == "" {
		r.reason, r.detail = ReasonStopped, why
	}
	r.mu.Unlock()
	graceCtx, cancel := context.WithTimeout(done, r.opts.Grace)
	defer cancel()
	if r.machine.Bus() == nil || !r.shutdown.Ready() {
		r.machine.Stop(why) // nobody there to ask
		return
	}
	if err := r.shutdown.Shutdown(graceCtx, ic.PowerOff, why); err != nil {
		r.machine.Stop(why)
		return
	}
	<-graceCtx.Done()
	r.machine.Stop(why)
}

// account turns what happened into the result.
func (r *run) account(res *Result, o vmm.Outcome) {
	r.mu.Lock()
	defer r.mu.Unlock()
	res.VMBus, res.Link = r.bus, r.transport
	r.drivers(res.VMBus)
	res.Reason, res.Detail = r.verdict(o)
	if e := r.exit; e != nil {
		res.ExitCode = e.Code
		res.Signal = e.SignalName()
	}
	switch res.Reason {
	case ReasonExit, ReasonNotFound, ReasonCannotRun, ReasonStopped:
	default:
		res.VPs = o.VPs
		res.Tail = r.console.Tail()
	}
}

// verdict decides between the accounts of the agent, of this side, of the
// machine and of the console.
func (r *run) verdict(o vmm.Outcome) (Reason, string) {
	panicked := r.console.Panic()
	if o.Crash != nil {
		if p := panicText(o.Crash.Message); p != "" {
			panicked = p
		}
		if panicked == "" {
			panicked = fmt.Sprintf("crash reported by the guest: parameters %#x", o.Crash.Params)
		}
	}
	switch {
	case r.reason == ReasonStopped:
		return r.reason, r.detail
	case r.exit != nil:
		return exitReason(r.exit)
	case r.reason != "":
		return r.reason, r.detail
	case panicked != "":
		return ReasonPanic, panicked
	}
	switch o.Cause {
	case vmm.CauseReset:
		return ReasonReset, "the guest reset the machine: " + o.Detail
	case vmm.CauseTripleFault, vmm.CauseFault:
		return ReasonTripleFault, o.Detail
	}
	return ReasonNoResult, "the guest powered off before the command's end was known: " + o.Detail
}

func exitReason(e *link.Exit) (Reason, string) {
	switch {
	case e.Shutdown == "reboot":
		return ReasonReset, "the guest was told to reboot"
	case e.Shutdown != "":
		return ReasonNoResult, "the guest was told to power off before the command ended"
	case e.Reason == link.ReasonNotFound:
		return ReasonNotFound, clean(e.Error)
	case e.Reason == link.ReasonExecFailed:
		return ReasonCannotRun, clean(e.Error)
	case e.Reason == link.ReasonAgent:
		return ReasonNoResult, "the agent in the guest failed: " + clean(e.Error)
	case e.Reason == link.ReasonSignal:
		return ReasonExit, "ended by " + e.SignalName()
	}
	return ReasonExit, ""
}
