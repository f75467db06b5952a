// Trial is the smallest program with an emulated host in it, for the tests of package emuhost: up, down, status, exec,
// tty and once, and two questions to ask inside.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hvpost/hvpost/kvm/emuhost"
)

func main() {
	emuhost.Intercept()
	os.Exit(run())
}

func run() int {
	var cfg emuhost.Config
	var vmlinuz, modules string
	flag.StringVar(&cfg.Name, "name", "trial", "instance")
	flag.StringVar(&cfg.RunDir, "rundir", "", "run-time directory")
	flag.StringVar(&cfg.QEMU, "qemu", "", "QEMU")
	flag.StringVar(&cfg.Append, "append", "", "more of the kernel's command line")
	flag.IntVar(&cfg.MemoryMiB, "m", 0, "memory in MiB")
	flag.DurationVar(&cfg.IdleTimeout, "idle", 0, "idle timeout")
	flag.DurationVar(&cfg.BootTimeout, "boot", 0, "boot timeout")
	flag.StringVar(&vmlinuz, "kernel", os.Getenv("HVPOST_EMUHOST_KERNEL"), "kernel")
	flag.StringVar(&modules, "modules", os.Getenv("HVPOST_EMUHOST_MODULES"), "directory with the kernel's modules")
	dir := flag.String("C", "", "working directory")
	flag.Parse()
	cfg.Kernel = func(context.Context) (emuhost.KernelFiles, error) { return find(vmlinuz, modules) }
	cfg.Logf = func(format string, args ...any) { fmt.Fprintf(os.Stderr, "hvpost: "+format+"\n", args...) }
	args := flag.Args()
	if len(args) == 0 {
		fmt.Fprintln(os.Stderr, "trial: up|down|status|list|exec|tty|once")
		return 2
	}
	signals := make(chan os.Signal, 16)
	ctx := context.Background()
	cmd := emuhost.Cmd{Argv: args[1:], Dir: *dir, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Signals: signals}
	var err error
	code := 0
	switch args[0] {
	case "up":
		_, err = emuhost.Up(ctx, cfg)
	case "down":
		err = emuhost.Down(ctx, cfg)
	case "status":
		var h *emuhost.Host
		if h, err = emuhost.Get(ctx, cfg); err == nil {
			err = json.NewEncoder(os.Stdout).Encode(h.Status)
		}
	case "list":
		var l []emuhost.Status
		if l, err = emuhost.List(ctx, cfg); err == nil {
			err = json.NewEncoder(os.Stdout).Encode(l)
		}
	case "exec", "tty":
		signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2)
		cfg.Logf = nil
		var h *emuhost.Host
		if h, err = emuhost.Up(ctx, cfg); err != nil {
			break
		}
		o := h.NewOutputs()
		cmd.TTY = args[0] == "tty"
		if cmd.Argv, err = o.MapTestArgs(cmd.Argv); err == nil {
			code, err = h.Exec(ctx, cmd)
		}
		err = errors.Join(err, o.Finish())
	case "once":
		signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT)
		code, err = emuhost.RunOnce(ctx, cfg, cmd, nil, nil)
	case "read":
		err = read(args[1:])
	case "kvm":
		err = tryKVM()
	default:
		err = fmt.Errorf("trial: %s?", args[0])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		if code == 0 {
			code = 1
		}
	}
	return code
}

// find makes the kernel's files from a directory like /lib/modules/RELEASE.
func find(vmlinuz, dir string) (k emuhost.KernelFiles, err error) {
	k.Vmlinuz = vmlinuz
	have := map[string]string{}
	err = filepath.WalkDir(dir, func(p string, e os.DirEntry, err error) error {
		for _, m := range emuhost.Modules {
			if b := filepath.Base(p); b == m+".ko.xz" || b == m+".ko" {
				have[m] = p
			}
		}
		return err
	})
	// What is missing may be built in; the boot will tell.
	for _, m := range emuhost.Modules {
		if p := have[m]; p != "" {
			k.Modules = append(k.Modules, p)
		}
	}
	return k, err
}

// read reads files twice and tells how long that took.
func read(names []string) error {
	buf := make([]byte, 1<<20)
	for _, n := range names {
		for range 2 {
			f, err := os.Open(n)
			if err != nil {
				return err
			}
			begun, total := time.Now(), 0
			for {
				k, err := f.Read(buf)
				total += k
				if err != nil {
					break
				}
			}
			f.Close()
			d := time.Since(begun)
			fmt.Printf("%s: %d bytes in %v, %.0f MB/s\n", n, total, d.Round(time.Millisecond), float64(total)/1e6/d.Seconds())
		}
	}
	return nil
}
