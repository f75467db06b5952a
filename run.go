package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/hvpost/hvpost/kvm/emuhost"
	"github.com/hvpost/hvpost/vmm/session"
)

// runFlags are the flags of hvpost run.
type runFlags struct {
	opts session.Options

	memory     string
	vmbusMax   string
	console    string
	result     string
	tty, noTTY bool
	dryRun     bool
	skip       bool
	host       string
}

func runCommand() *cobra.Command {
	f := &runFlags{}
	cmd := &cobra.Command{
		Use:   "run [flags] [--] [command [arg ...]]",
		Short: "Boot a guest, run a command in it, exit with its code",
		Long: `Run boots a kernel in a machine that speaks Hyper-V, runs the command as root
and exits with its code. Without a command it runs a shell.

A command that the host has is copied into the guest with its interpreter and
libraries; a bare name of the built-in userland (sh, cat, ls, ...) runs that.
Standard input, output and error are streams of their own, apart from the
kernel log.

Exit codes besides the command's own: 77 skipped, 120 no usable KVM, 121 guest
panic, 122 triple fault, 123 reset or no result, 124 timeout, 125 error of the
monitor or of its use, 126 the command could not be run, 127 not found. The
file of --result says which it was when the command may use these codes too.`,
		Example: `  hvpost run -- uname -a
  hvpost run -k debian:6.1 -c 4 -m 1G -- ./my.test -test.v
  go test -exec 'hvpost run --' ./...`,
		RunE: func(cmd *cobra.Command, args []string) error {
			f.opts.Argv = args
			return f.run(cmd.Context(), cmd.Flags())
		},
	}
	f.register(cmd.Flags())
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		if f.result == "" {
			f.result = resultFlag(cmd.Flags(), os.Args)
		}
		if session.CheckOutput(f.result) != nil {
			f.result = ""
		}
		return f.failed(session.ReasonError, err)
	})
	return cmd
}

func (f *runFlags) register(fs *pflag.FlagSet) {
	fs.SetInterspersed(false) // what follows the command is the command's
	o := &f.opts
	fs.StringVarP(&o.Kernel, "kernel", "k", "", "kernel: a file, a directory, a .deb, debian[:6.1|:6.12] or host")
	fs.StringVarP(&o.Initrd, "initrd", "i", "", "cpio archive to unpack over the guest's own")
	fs.StringArrayVarP(&o.Append, "append", "a", nil, "words to add to the kernel command line")
	fs.StringVar(&o.Cmdline, "cmdline", "", "replaces the default kernel command line")
	fs.StringVar(&o.Boot, "boot", "auto", "boot protocol: auto, linux64, bzimage or pvh")
	fs.StringVarP(&f.memory, "memory", "m", session.FormatSize(session.DefaultMemory), "RAM, as 512M or 2G; a bare number is in MiB")
	fs.IntVarP(&o.CPUs, "cpus", "c", session.DefaultCPUs, fmt.Sprintf("virtual processors, 1 to %d", session.MaxCPUs))
	fs.StringArrayVar(&o.Files, "file", nil, "host[:guest] file or directory to copy into the guest")
	fs.StringArrayVar(&o.Modules, "module", nil, "kernel module to load, with those it needs")
	fs.StringArrayVarP(&o.Env, "env", "e", nil, "KEY=VALUE, or KEY with the host's value, for the command")
	fs.StringVar(&o.Dir, "cwd", "", "working directory of the command in the guest")
	fs.BoolVarP(&f.tty, "tty", "t", false, "give the command a terminal even if stdin or stdout is none")
	fs.BoolVarP(&f.noTTY, "no-tty", "T", false, "give the command no terminal")
	fs.StringVar(&f.console, "console", "none", "where the kernel log goes besides --console-log: none or stderr")
	fs.StringVar(&o.ConsoleLog, "console-log", "", "file for the kernel log")
	fs.StringVar(&f.result, "result", "", "file for the result as JSON")
	fs.DurationVar(&o.Timeout, "timeout", 0, "bound on the run from the first guest instruction, as 30s or 5m")
	fs.DurationVar(&o.BootTimeout, "boot-timeout", session.DefaultBootTimeout, "bound on the time until the guest's agent answers")
	fs.StringVar(&f.vmbusMax, "vmbus-max-version", "", "newest VMBus version to offer, 2.4 to 5.3")
	fs.BoolVar(&o.NoVMBus, "no-vmbus", false, "a machine without VMBus")
	fs.StringVar(&f.host, "host", "auto", "where to run: auto, kvm or emulated")
	fs.BoolVar(&f.dryRun, "dry-run", false, "print what would be run as JSON, and exit")
	fs.BoolVar(&f.skip, "skip-unsupported", false, "exit with 77 instead of 120 when the host has no usable KVM")
	fs.BoolVarP(&o.Verbose, "verbose", "v", false, "kernel log on stderr, kernel not quiet")
	fs.BoolVarP(&quiet, "quiet", "q", false, "no lines of hvpost's own on stderr but its errors")
	fs.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		switch name { // what users of other tools type
		case "mem":
			name = "memory"
		case "smp":
			name = "cpus"
		case "initramfs":
			name = "initrd"
		}
		return pflag.NormalizedName(name)
	})
}

// complete turns the flags into options.
func (f *runFlags) complete() error {
	o := &f.opts
	o.Started, o.Logf, o.Version = started, say, version
	var err error
	if o.Memory, err = session.ParseSize(f.memory); err != nil {
		return fmt.Errorf("--memory: %w", err)
	}
	if o.Memory == 0 {
		return errors.New("--memory: a guest cannot have none")
	}
	if o.CPUs < 1 || o.CPUs > session.MaxCPUs {
		return fmt.Errorf("--cpus: %d CPUs: a guest has 1 to %d", o.CPUs, session.MaxCPUs)
	}
	if f.vmbusMax != "" {
		if o.VMBusMaxMajor, o.VMBusMaxMinor, err = session.ParseVMBusVersion(f.vmbusMax); err != nil {
			return fmt.Errorf("--vmbus-max-version: %w", err)
		}
	}
	for i, kv := range o.Env {
		name, _, given := strings.Cut(kv, "=")
		if name == "" {
			return fmt.Errorf("--env: %q has no name", kv)
		}
		if !given {
			o.Env[i] = name + "=" + os.Getenv(name)
		}
	}
	if f.tty && f.noTTY {
		return errors.New("--tty and --no-tty exclude each other")
	}
	switch f.console {
	case "none":
	case "stderr":
		o.Console = os.Stderr
	default:
		return fmt.Errorf("--console: %q is not known; known: none, stderr", f.console)
	}
	if o.Verbose {
		o.Console = os.Stderr
	}
	if o.ConsoleLog != "" {
		if err := session.CheckOutput(o.ConsoleLog); err != nil {
			return fmt.Errorf("--console-log: %w", err)
		}
	}
	return nil
}

// resultFlag finds --result behind a flag that could not be parsed: programs
// look for the result then too. An unknown flag ends the search, for what
// follows it may be the guest's command.
func resultFlag(fs *pflag.FlagSet, args []string) string {
	i := slices.Index(args, "run")
	if i < 0 {
		return ""
	}
	lax := pflag.NewFlagSet("run", pflag.ContinueOnError)
	lax.SetInterspersed(false)
	lax.SetNormalizeFunc(fs.GetNormalizeFunc())
	lax.SetOutput(io.Discard)
	lax.Usage = func() {}
	var result string
	fs.VisitAll(func(fl *pflag.Flag) {
		to := new(string)
		if fl.Name == "result" {
			to = &result
		}
		lax.StringVarP(to, fl.Name, fl.Shorthand, "", "")
		lax.Lookup(fl.Name).NoOptDefVal = fl.NoOptDefVal
	})
	_ = lax.Parse(args[i+1:]) // what it found before an error counts
	return result
}

// failed reports an error that came before there was a run.
func (f *runFlags) failed(reason session.Reason, err error) error {
	return f.finish(&session.Result{Reason: reason, Detail: oneLine(err), Command: f.opts.Argv}, err)
}

func (f *runFlags) run(ctx context.Context, fs *pflag.FlagSet) error {
	if f.result != "" {
		if err := session.CheckOutput(f.result); err != nil {
			f.result = ""
			return f.failed(session.ReasonError, fmt.Errorf("--result: %w", err))
		}
	}
	if err := f.complete(); err != nil {
		return f.failed(session.ReasonError, err)
	}
	where, err := chooseHost(f.host, f.opts.KVM)
	if err != nil {
		return f.failed(session.ReasonError, err)
	}
	if where.emulated && !f.dryRun {
		// Everything that can be wrong with the request is found out here,
		// before a host is booted for it. What there is to note is noted in
		// there.
		o := f.opts
		o.Logf = nil
		if err := f.rehearse(ctx, o); err != nil {
			return err
		}
		return f.runEmulated(ctx, where, fs)
	}
	return f.runHere(ctx)
}

// rehearse prepares a run that will take place elsewhere.
func (f *runFlags) rehearse(ctx context.Context, o session.Options) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer notifyStop(cancel, func() {})()
	_, err := session.Prepare(ctx, o)
	if ctx.Err() != nil {
		return f.stopped(ctx)
	}
	if err != nil {
		return f.failed(session.ReasonError, err)
	}
	return nil
}

// stopped reports a run that ended before it began.
func (f *runFlags) stopped(ctx context.Context) error {
	err := context.Cause(ctx)
	return f.finish(&session.Result{Reason: session.ReasonStopped, StopSignal: stopSignal(ctx), Detail: err.Error(), Command: f.opts.Argv}, err)
}

// runHere runs the guest on this machine's KVM.
func (f *runFlags) runHere(ctx context.Context) error {
	o := &f.opts
	o.Stdin, o.Stdout, o.Stderr = os.Stdin, os.Stdout, os.Stderr
	o.Emulated = emuhost.Inside() != ""
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var t *terminal
	defer func() { t.Restore() }()
	if f.wantsTTY() && !f.dryRun {
		if t = userTerminal(); t != nil {
			done := make(chan struct{})
			defer close(done)
			rows, cols := t.size()
			o.TTY = &session.TTY{Rows: rows, Cols: cols, Resize: t.resizes(done)}
			t.keys = newEscapes(os.Stderr, func() { cancel(errLeft) })
			o.Stdin = t.keys
			if o.Console != nil {
				o.Console = &rawWriter{os.Stderr}
			}
		} else if f.tty {
			o.TTY = &session.TTY{Rows: 24, Cols: 80}
		}
	}
	stop := notifyStop(cancel, t.Restore)
	defer stop()
	plan, err := session.Prepare(ctx, *o)
	if ctx.Err() != nil {
		return f.stopped(ctx)
	}
	if err != nil {
		return f.failed(session.ReasonError, err)
	}
	if f.dryRun {
		enc := json.NewEncoder(os.Stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(plan.Describe())
	}
	// A processor that is in the guest holds one of the runtime's slots until
	// the runtime's monitor notices, which may take 10 ms. With a slot to
	// spare, devices and timers never wait for that.
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), o.CPUs+2))
	// Raw no earlier than now: until here Ctrl-C ends the program.
	if err := t.MakeRaw(); err != nil {
		return f.failed(session.ReasonError, fmt.Errorf("terminal: %w", err))
	}
	stopKeys, err := t.StartKeys()
	if err != nil {
		t.Restore()
		return f.failed(session.ReasonError, fmt.Errorf("terminal: %w", err))
	}
	res, err := plan.Run(ctx)
	t.Restore()
	stopKeys()
	if res.Reason == session.ReasonStopped {
		res.StopSignal = stopSignal(ctx)
	}
	return f.finish(res, err)
}

// wantsTTY reports whether the command gets a terminal: if asked for, or if
// the user sits at one.
func (f *runFlags) wantsTTY() bool {
	if f.noTTY {
		return false
	}
	return f.tty || term.IsTerminal(int(os.Stdin.Fd())) && term.IsTerminal(int(os.Stdout.Fd()))
}

// errLeft is the cause when the user leaves with Ctrl-A x.
var errLeft = errors.New("left with Ctrl-A x")

// signalError is the cause when a signal ends the run.
type signalError struct{ sig syscall.Signal }

func (e signalError) Error() string { return e.sig.String() + " signal" }

// stopSignal is the signal that ended the run, or that leaving it counts as.
func stopSignal(ctx context.Context) int {
	if e, ok := errors.AsType[signalError](context.Cause(ctx)); ok {
		return int(e.sig)
	}
	return int(syscall.SIGINT)
}

// notifyStop cancels the run on the signals that end a program, which gives
// the guest time to shut down. A second one ends the program at once, after
// giving the terminal back.
func notifyStop(cancel context.CancelCauseFunc, restore func()) (stop func()) {
	ch := make(chan os.Signal, 2)
	signal.Notify(ch, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	done := make(chan struct{})
	go func() {
		for first := true; ; first = false {
			select {
			case s := <-ch:
				sig := s.(syscall.Signal)
				if !first {
					restore()
					os.Exit(128 + int(sig))
				}
				cancel(signalError{sig})
			case <-done:
				return
			}
		}
	}()
	return func() { signal.Stop(ch); close(done) }
}

// rawWriter writes for a terminal in raw mode, which does not return the
// carriage by itself.
type rawWriter struct{ w io.Writer }

func (r *rawWriter) Write(p []byte) (int, error) {
	_, err := r.w.Write([]byte(strings.ReplaceAll(string(p), "\n", "\r\n")))
	return len(p), err
}

// finish writes the result, tells the user what the exit code alone would
// not, and returns that code.
func (f *runFlags) finish(res *session.Result, err error) error {
	code := f.code(res)
	res.ExitCode = code
	if f.result != "" {
		if werr := res.WriteFile(f.result); werr != nil {
			complain(werr)
			code = codeError
		}
	}
	report(res, err)
	if code == 0 {
		return nil
	}
	return exitError(code)
}

// code maps a result to the exit code of the command.
func (f *runFlags) code(res *session.Result) int {
	switch res.Reason {
	case session.ReasonExit:
		return res.ExitCode
	case session.ReasonNotFound:
		return codeNotFound
	case session.ReasonCannotRun:
		return codeCannotRun
	case session.ReasonPanic:
		return codePanic
	case session.ReasonTripleFault:
		return codeTripleFault
	case session.ReasonReset, session.ReasonNoResult:
		return codeNoResult
	case session.ReasonTimeout, session.ReasonBootTimeout:
		return codeTimeout
	case session.ReasonStopped:
		return 128 + int(res.StopSignal)
	case session.ReasonNoKVM:
		if f.skip {
			return codeSkipped
		}
		return codeNoKVM
	}
	return codeError
}

// report tells the user about anything but an ordinary exit: the cause in one
// line, then what helps to understand it.
func report(res *session.Result, err error) {
	switch res.Reason {
	case session.ReasonExit:
		return
	case session.ReasonError, session.ReasonNoKVM:
		complain(err)
		return
	case session.ReasonNotFound, session.ReasonCannotRun:
		return // the agent said so on stderr, as a shell does
	case session.ReasonStopped:
		say("stopped: %s", res.Detail)
		return
	}
	say("%s: %s", res.Reason, res.Detail)
	if quiet {
		return
	}
	if len(res.Tail) > 0 {
		say("last lines of the console:")
		for _, l := range res.Tail {
			fmt.Fprintf(os.Stderr, "hvpost: | %s\n", l)
		}
	} else {
		say("the console printed nothing; -v shows the kernel log from the start")
	}
	for _, vp := range res.VPs {
		say("%v", vp)
	}
}
