package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/hvpost/hvpost/guest/kernel"
	"github.com/hvpost/hvpost/kvm/emuhost"
	"github.com/hvpost/hvpost/kvm/probe"
	"github.com/hvpost/hvpost/vmm/session"
)

// hostKernel is the kernel of the emulated host: the full flavour, which has
// KVM and 9p.
const hostKernel = "debian:6.12:amd64"

// emulatedConfig describes the emulated host that this program uses.
func emulatedConfig() emuhost.Config {
	return emuhost.Config{Kernel: emulatedKernel, Logf: say}
}

func emulatedKernel(ctx context.Context) (emuhost.KernelFiles, error) {
	o := session.KernelOptions()
	if !quiet {
		o.Progress = os.Stderr
	}
	k, err := kernel.Resolve(ctx, hostKernel, o)
	if err != nil {
		return emuhost.KernelFiles{}, err
	}
	files := emuhost.KernelFiles{Vmlinuz: k.Image}
	if k.Vmlinux != "" {
		files.Vmlinuz = k.Vmlinux
	}
	for _, name := range emuhost.Modules {
		mods, err := k.Modules(name)
		if errors.Is(err, kernel.ErrNoModule) {
			continue // built in, or of another kernel version
		}
		if err != nil {
			return emuhost.KernelFiles{}, err
		}
		for _, m := range mods {
			if !slices.Contains(files.Modules, m.Path) {
				files.Modules = append(files.Modules, m.Path)
			}
		}
	}
	return files, nil
}

// place is where a guest is to run.
type place struct {
	emulated bool
	why      string // it cannot run on this machine's own KVM
}

// chooseHost decides where a guest runs. Only auto looks at the machine; the
// answer is never silent, for an emulated host is slow.
func chooseHost(flag, device string) (place, error) {
	switch flag {
	case "kvm":
		return place{}, nil
	case "emulated":
		if emuhost.Inside() != "" {
			return place{}, nil
		}
		return place{emulated: true, why: "as --host says"}, nil
	case "auto":
		if emuhost.Inside() != "" {
			return place{}, nil
		}
		ok, why, err := probe.CanRunLinux(device)
		if err != nil {
			return place{emulated: true, why: "no usable KVM (" + err.Error() + ")"}, nil
		}
		if !ok {
			return place{emulated: true, why: "no usable KVM (" + why + ")"}, nil
		}
		return place{}, nil
	}
	return place{}, fmt.Errorf("--host: %q is not known; known: auto, kvm, emulated", flag)
}

// runEmulated runs hvpost itself with the same request in the emulated host.
// One that is up is used; otherwise one is booted for this run alone.
func (f *runFlags) runEmulated(ctx context.Context, where place, fs *pflag.FlagSet) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	var streams streamed
	defer streams.remove()
	argv := func(outs *emuhost.Outputs) ([]string, error) {
		argv := []string{self, "run", "--host=kvm"}
		var err error
		fs.Visit(func(fl *pflag.Flag) {
			value := fl.Value.String()
			switch fl.Name {
			case "host":
				return
			case "result", "console-log":
				// The file is written in there and comes out afterwards.
				var e error
				if value, e = streams.file(value); e == nil {
					value, e = mapOutput(outs, value)
				}
				if err == nil {
					err = e
				}
			}
			if list, ok := fl.Value.(pflag.SliceValue); ok {
				for _, v := range list.GetSlice() {
					argv = append(argv, "--"+fl.Name+"="+v)
				}
				return
			}
			argv = append(argv, "--"+fl.Name+"="+value)
		})
		return append(append(argv, "--"), f.opts.Argv...), err
	}
	cfg := emulatedConfig()
	cfg.Reason = where.why
	if quiet {
		cfg.Logf = nil
	}
	if need := int(f.opts.Memory>>20) + 1024; need > emuhost.DefaultMemoryMiB {
		cfg.MemoryMiB = need
	}
	code, err := execEmulated(ctx, cfg, emuhost.Cmd{TTY: f.wantsTTY()}, argv)
	if err == nil {
		err = streams.copy()
	}
	if err != nil {
		return f.failed(session.ReasonError, err)
	}
	if code != 0 {
		return exitError(code)
	}
	return nil
}

// inherited are the streams that mean the same in the emulated host as here.
var inherited = []string{"/dev/stdout", "/dev/stderr", os.DevNull}

func mapOutput(outs *emuhost.Outputs, path string) (string, error) {
	if slices.Contains(inherited, path) {
		return path, nil
	}
	return outs.Map(path)
}

// streamed are files that stand in for the streams of this side, a FIFO for
// instance, which a command in the emulated host cannot reach. What is in
// them is copied when the command has ended.
type streamed struct {
	dir   string // "" until needed
	paths []string
}

// file returns the path that stands in for path: itself where it can.
func (s *streamed) file(path string) (string, error) {
	if !session.IsStream(path) || slices.Contains(inherited, path) {
		return path, nil
	}
	if s.dir == "" {
		dir, err := os.MkdirTemp("", "hvpost-")
		if err != nil {
			return "", err
		}
		s.dir = dir
	}
	s.paths = append(s.paths, path)
	return s.name(len(s.paths) - 1), nil
}

func (s *streamed) name(i int) string { return filepath.Join(s.dir, fmt.Sprint(i)) }

func (s *streamed) copy() error {
	for i, path := range s.paths {
		from, err := os.Open(s.name(i))
		if errors.Is(err, os.ErrNotExist) {
			continue // not written
		}
		if err != nil {
			return err
		}
		to, err := session.OpenStream(path)
		if err == nil {
			_, err = io.Copy(to, from)
			if e := to.Close(); err == nil {
				err = e
			}
		}
		from.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *streamed) remove() {
	if s.dir != "" {
		os.RemoveAll(s.dir)
	}
}

// execEmulated runs cmd in the emulated host that is up, or in one of its
// own, with this process's streams and signals. argv makes the arguments once
// it is known where files that come out must be written.
func execEmulated(ctx context.Context, cfg emuhost.Config, cmd emuhost.Cmd,
	argv func(*emuhost.Outputs) ([]string, error)) (int, error) {
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	sig := make(chan os.Signal, 4)
	signal.Notify(sig, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	defer signal.Stop(sig)
	cmd.Signals = sig
	var outs *emuhost.Outputs
	before := func(h *emuhost.Host, c *emuhost.Cmd) (err error) {
		outs = h.NewOutputs()
		c.Argv, err = argv(outs)
		return err
	}
	after := func(*emuhost.Host) error { return outs.Finish() }

	h, err := emuhost.Get(ctx, cfg)
	if errors.Is(err, emuhost.ErrNotUp) {
		return emuhost.RunOnce(ctx, cfg, cmd, before, after)
	}
	if err != nil {
		return codeError, err
	}
	if cfg.Logf != nil && cfg.Reason != "" {
		cfg.Logf("%s; running in the emulated host", cfg.Reason)
	}
	if err := before(h, &cmd); err != nil {
		return codeError, err
	}
	code, err := h.Exec(ctx, cmd)
	if e := after(h); err == nil {
		err = e
	}
	return code, err
}

func hostCommand() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "host",
		Short: "The emulated host: a real KVM anywhere, slowly",
		Long: `Where /dev/kvm is missing or cannot run Linux, hvpost runs guests in an emulated
host: QEMU emulates a processor with SVM, a Debian kernel in it has a real KVM,
and the files are this machine's own, read-only. "host up" keeps one running
that later commands use; without it each command boots its own.`,
	}
	cmd.PersistentFlags().StringVar(&name, "name", emuhost.DefaultName, "which emulated host, if several run side by side")
	config := func() emuhost.Config {
		cfg := emulatedConfig()
		cfg.Name = name
		return cfg
	}

	var idle time.Duration
	var memory string
	up := &cobra.Command{
		Use:   "up",
		Short: "Start the emulated host, or find it running",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg := config()
			cfg.IdleTimeout = idle
			cfg.Logf = nil
			size, err := session.ParseSize(memory)
			if err != nil {
				return fmt.Errorf("--memory: %w", err)
			}
			cfg.MemoryMiB = int(size >> 20)
			h, err := emuhost.Up(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			if h.Started {
				say("emulated host %s is up: kernel %s, booted in %.1f s", h.Status.Name, h.Status.Kernel, h.Status.BootSeconds)
			} else {
				say("emulated host %s was up already", h.Status.Name)
			}
			return nil
		},
	}
	up.Flags().DurationVar(&idle, "idle-timeout", emuhost.DefaultIdleTimeout, "end it after so long without a command; negative: never")
	up.Flags().StringVarP(&memory, "memory", "m", fmt.Sprintf("%dM", emuhost.DefaultMemoryMiB), "its RAM, which guests share")

	down := &cobra.Command{
		Use:   "down",
		Short: "End the emulated host",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := emuhost.Down(cmd.Context(), config())
			if errors.Is(err, emuhost.ErrNotUp) {
				say("emulated host %s was not up", name)
				return nil
			}
			return err
		},
	}
	status := &cobra.Command{
		Use:   "status",
		Short: "Print the state of the emulated hosts as JSON; exit code 1 if none runs",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := emuhost.List(cmd.Context(), config())
			if err != nil {
				return err
			}
			if all == nil {
				all = []emuhost.Status{}
			}
			enc := json.NewEncoder(os.Stdout)
			enc.SetIndent("", "  ")
			if err := enc.Encode(all); err != nil {
				return err
			}
			if len(all) == 0 {
				return exitError(1)
			}
			return nil
		},
	}
	exec := &cobra.Command{
		Use:     "exec [--] command [arg ...]",
		Short:   "Run a command in the emulated host, with its real /dev/kvm",
		Example: "  go test -exec 'hvpost host exec --' ./kvm",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg := config()
			cfg.Logf = nil
			tty := term.IsTerminal(int(os.Stdin.Fd())) && term.IsTerminal(int(os.Stdout.Fd()))
			code, err := execEmulated(cmd.Context(), cfg, emuhost.Cmd{TTY: tty},
				func(outs *emuhost.Outputs) ([]string, error) { return outs.MapTestArgs(args) })
			if err != nil {
				complain(err)
			}
			if code != 0 {
				return exitError(code)
			}
			return nil
		},
	}
	exec.Flags().SetInterspersed(false)
	cmd.AddCommand(up, down, status, exec)
	return cmd
}
