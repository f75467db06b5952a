package session

import (
	"cmp"
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hvpost/hvpost/firmware/boot"
	"github.com/hvpost/hvpost/guest/initrd"
	"github.com/hvpost/hvpost/guest/kernel"
	"github.com/hvpost/hvpost/guest/link"
	"github.com/hvpost/hvpost/guest/userland"
)

// A Plan is a run with everything found and checked that can be before there
// is a machine.
type Plan struct {
	opts     Options
	kernel   *kernel.Kernel
	modules  []kernel.Module
	files    *initrd.Builder
	image    *initrd.Image
	job      link.Job
	notes    []string // for the user, when everything is found
	prepared float64  // ms since Options.Started

	bus *VMBus // as it was when the command ended; set by the run
}

// vmbusModules are what makes a Linux guest a guest of ours.
var vmbusModules = []string{"hv_vmbus", "hv_utils"}

// kernelHelpers are the programs that a kernel itself calls, by these paths in
// /sbin; without poweroff the shutdown device would switch off without asking
// anybody in the guest. modprobe is not among them: a kernel that asks for
// modules while it boots would wait for each answer.
var kernelHelpers = []string{"poweroff", "reboot", "halt", "shutdown"}

// modulesDir is where modules lie in the image.
const modulesDir = "/.hvpost/modules/"

// Prepare resolves the kernel, the modules and the command, and builds the
// image. It needs no KVM. Its errors are about what the user asked for; each
// is one line that names the file, the flag or the device.
func Prepare(ctx context.Context, opts Options) (*Plan, error) {
	if opts.Started.IsZero() {
		opts.Started = time.Now()
	}
	if err := opts.check(); err != nil {
		return nil, err
	}
	p := &Plan{opts: opts}
	for _, step := range []func(context.Context) error{p.findKernel, p.findModules, p.buildImage, p.checkImage} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	if opts.Logf != nil { // only now: an error is one line
		for _, n := range p.notes {
			opts.Logf("%s", n)
		}
	}
	p.prepared = float64(time.Since(opts.Started).Microseconds()) / 1000
	return p, nil
}

// KernelOptions are how this package resolves kernels.
func KernelOptions() kernel.Options {
	return kernel.Options{Unpacker: boot.Unpack}
}

func (p *Plan) findKernel(ctx context.Context) (err error) {
	if err := checkKernelFile(cmp.Or(p.opts.Kernel, os.Getenv(kernel.EnvKernel))); err != nil {
		return err
	}
	p.kernel, err = kernel.Resolve(ctx, p.opts.Kernel, KernelOptions())
	return err
}

// checkKernelFile looks at a kernel that is given as a file before anything is
// derived from it: nothing is cached of what is no kernel.
func checkKernelFile(spec string) error {
	st, err := os.Stat(spec)
	if err != nil || st.IsDir() || strings.HasSuffix(spec, ".deb") {
		return nil // kernel.Resolve knows more
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("kernel %s: not a regular file", spec)
	}
	f, err := os.Open(spec)
	if err != nil {
		return fmt.Errorf("kernel: %w", err)
	}
	defer f.Close()
	if _, err := boot.Open(f); err != nil {
		return fmt.Errorf("kernel %w", err)
	}
	return nil
}

// findModules resolves the VMBus modules and the user's. A kernel without
// Hyper-V support boots all the same; the user is told.
func (p *Plan) findModules(context.Context) error {
	if !p.opts.NoVMBus {
		// Each by itself: a kernel may have one built in and not know another.
		for _, name := range vmbusModules {
			mods, err := p.kernel.Modules(name)
			switch {
			case err == nil:
				p.addModules(mods)
			case errors.Is(err, kernel.ErrNoModule) || errors.Is(err, kernel.ErrNoModules):
				if cfg := p.kernel.Config; cfg != nil && !cfg.Enabled("CONFIG_HYPERV") {
					p.say("kernel %s is built without Hyper-V support; its guest will not see the VMBus", p.kernel.Release)
					return p.userModules()
				}
			default:
				return err
			}
		}
	}
	return p.userModules()
}

func (p *Plan) userModules() error {
	if len(p.opts.Modules) == 0 {
		return nil
	}
	mods, err := p.kernel.Modules(p.opts.Modules...)
	if err != nil {
		return err
	}
	p.addModules(mods)
	return nil
}

// addModules appends those that are not in the list yet.
func (p *Plan) addModules(mods []kernel.Module) {
	for _, m := range mods {
		if !slices.ContainsFunc(p.modules, func(have kernel.Module) bool { return have.Name == m.Name }) {
			p.modules = append(p.modules, m)
		}
	}
}

// say notes a line for the user.
func (p *Plan) say(format string, args ...any) {
	p.notes = append(p.notes, fmt.Sprintf(format, args...))
}

// buildImage lists what goes into the initial RAM file system.
func (p *Plan) buildImage(context.Context) error {
	self := p.opts.Self
	if self == "" {
		exe, err := os.Executable()
		if err != nil {
			return fmt.Errorf("own binary: %w", err)
		}
		self = exe
	}
	b := initrd.New()
	if err := initrd.Base(b, self, userland.Applets()); err != nil {
		return err
	}
	for _, name := range kernelHelpers {
		if err := b.AddSymlink("/init", "/sbin/"+name); err != nil {
			return err
		}
	}
	p.job = link.Job{
		Env:      p.opts.Env,
		Cwd:      p.opts.Dir,
		Hostname: "hvpost",
		Info:     true,
	}
	for _, m := range p.modules {
		if err := checkModule(m.Path); err != nil {
			return fmt.Errorf("module %s: %s: %w", m.Name, m.Source, err)
		}
		path := modulesDir + m.Name + ".ko"
		if err := b.AddFile(m.Path, path); err != nil {
			return fmt.Errorf("module %s: %w", m.Name, err)
		}
		p.job.Modules = append(p.job.Modules, path)
	}
	if t := p.opts.TTY; t != nil {
		p.job.TTY, p.job.Rows, p.job.Cols = true, t.Rows, t.Cols
	}
	for _, f := range p.opts.Files {
		spec, err := initrd.ParseFileSpec(f)
		if err != nil {
			return err
		}
		if err := b.AddSpec(spec); err != nil {
			return err
		}
	}
	if err := p.addCommand(b); err != nil {
		return err
	}
	job, err := json.Marshal(p.job)
	if err != nil {
		return err
	}
	if err := b.AddBytes(job, link.JobPath, 0o600); err != nil {
		return err
	}
	p.files = b
	p.image, err = b.Build()
	return err
}

// checkModule reports a file that no x86-64 kernel would load: it would be
// refused in the guest, after a boot.
func checkModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return reason(err)
	}
	defer f.Close()
	e, err := elf.NewFile(f)
	switch {
	case err != nil:
		return errors.New("is not a kernel module: damaged, or no ELF file")
	case e.Type != elf.ET_REL:
		return errors.New("is not a kernel module, but another kind of ELF file")
	case e.Machine != elf.EM_X86_64:
		return fmt.Errorf("is a module for another processor (%v); an x86-64 one is needed", e.Machine)
	}
	return nil
}

// addCommand puts the command into the image. A bare name of the built-in
// userland runs that; otherwise what the host has under the name is copied
// with its interpreter and libraries; otherwise the guest will have to have
// it, from --file for instance.
func (p *Plan) addCommand(b *initrd.Builder) error {
	argv := p.opts.Argv
	if len(argv) == 0 {
		return nil
	}
	p.job.Argv = slices.Clone(argv)
	name := argv[0]
	bare := !strings.Contains(name, "/")
	if bare && slices.Contains(userland.Applets(), name) {
		return nil
	}
	host := name
	if bare {
		found, err := exec.LookPath(name)
		if err != nil {
			return nil
		}
		host = found
	}
	host, err := filepath.Abs(host)
	if err != nil {
		return err
	}
	st, err := os.Stat(host)
	if err != nil || !st.Mode().IsRegular() || b.Has(host) {
		return nil // the guest's own, or nothing: the agent will say which
	}
	if err := b.AddELF(host, host); err != nil {
		return err
	}
	p.job.Argv[0] = host
	if p.job.Cwd == "" {
		return p.addWorkDir(b, host)
	}
	return nil
}

// addWorkDir gives a copied command the working directory that it would have
// on the host, and to a Go test binary the test data there.
func (p *Plan) addWorkDir(b *initrd.Builder, host string) error {
	dir, err := os.Getwd()
	if err != nil {
		return nil // it is gone; the default will do
	}
	if err := b.AddDir(dir, 0o755); err != nil {
		return err
	}
	p.job.Cwd = dir
	if !strings.HasSuffix(host, ".test") {
		return nil
	}
	// go test names files for the test to write, in directories of its own.
	for _, a := range p.job.Argv[1:] {
		if name, path, ok := strings.Cut(a, "="); ok && strings.HasPrefix(name, "-test.") && filepath.IsAbs(path) {
			if err := b.AddDir(filepath.Dir(path), 0o755); err != nil {
				return err
			}
		}
	}
	data := filepath.Join(dir, "testdata")
	if st, err := os.Stat(data); err == nil && st.IsDir() {
		return b.AddTree(data, data)
	}
	return nil
}

// result is what is known before the run.
func (p *Plan) result() *Result {
	host := "kvm"
	if p.opts.Emulated {
		host = "emulated"
	}
	return &Result{
		Command: p.opts.Argv,
		Kernel:  Kernel{Release: p.kernel.Release, Path: p.kernelPath(), Source: p.kernel.Source, Boot: p.bootProtocol()},
		Cmdline: p.cmdline(windowParameter()),
		CPUs:    p.opts.CPUs,
		Memory:  p.opts.Memory,
		Host:    host,
	}
}

// A Description is a Plan for people and programs: what --dry-run prints.
type Description struct {
	Command []string `json:"command"`
	Kernel  Kernel   `json:"kernel"`
	Cmdline string   `json:"cmdline"`
	CPUs    int      `json:"cpus"`
	Memory  uint64   `json:"memory_bytes"`
	Modules []string `json:"modules"`
	Initrd  int64    `json:"initrd_bytes"`
	Files   []string `json:"initrd_files"`
	Job     link.Job `json:"job"`
}

// Describe says what Run would do.
func (p *Plan) Describe() Description {
	r := p.result()
	d := Description{Command: r.Command, Kernel: r.Kernel, Cmdline: r.Cmdline, CPUs: r.CPUs, Memory: r.Memory, Job: p.job}
	for _, m := range p.modules {
		d.Modules = append(d.Modules, m.Name)
	}
	d.Initrd = p.image.Size
	for _, e := range p.files.Entries() {
		d.Files = append(d.Files, e.Path)
	}
	return d
}

// TTY reports whether the command gets a terminal.
func (p *Plan) TTY() bool { return p.job.TTY }
