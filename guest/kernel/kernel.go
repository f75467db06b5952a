package kernel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// EnvKernel names the environment variable that holds the kernel spec used
// when none is given.
const EnvKernel = "HVPOST_KERNEL"

// A Kernel is a kernel that a guest can boot.
type Kernel struct {
	Release string // uname -r; empty for an ELF image that is not Linux
	Source  string // where it comes from, for people
	Name    string // of the cache entry: a spec that finds it again

	Image   string // path of the bzImage; empty for an ELF image
	Vmlinux string // path of the ELF image; empty if Image was not unpacked
	SHA256  string // hex, of Image, or of Vmlinux if there is no Image

	ModuleDir string // directory of the modules; empty if there is none
	Config    Config // build configuration; nil if unknown

	entry *entry
	cache *cache

	mu  sync.Mutex // guards set and what is in it
	set *moduleSet // built when first needed
}

// Options say how Resolve and Fetch work. The zero value is usable.
type Options struct {
	// CacheDir holds the kernels; empty for hvpost/kernels in the user's
	// cache directory.
	CacheDir string

	// Unpacker writes the ELF image inside a bzImage to w. Without it
	// Kernel.Vmlinux is set only for kernels that are ELF files themselves.
	Unpacker func(bzImage *os.File, w io.Writer) error

	// ModuleDir overrides where modules are looked for: a directory with
	// modules.dep or modules.order, or one that holds lib/modules/RELEASE.
	ModuleDir string

	// Offline keeps Resolve from fetching a "debian" kernel that is not in
	// the cache.
	Offline bool

	// Progress gets one line per step that takes long; nil for silence.
	Progress io.Writer
}

// ErrNoKernel reports that no kernel was given and none was found.
var ErrNoKernel = errors.New("no kernel")

// Resolve finds the kernel that spec names:
//
//	PATH           a bzImage, a vmlinux, a .deb (or several with commas between:
//	               newer packages split a kernel up), or a directory: a kernel
//	               build tree, or one that holds boot/vmlinuz-* and lib/modules,
//	               or the .deb files of one kernel
//	host           the kernel that runs here
//	debian[:SERIES[:FLAVOUR]]
//	               Debian's kernel, from the cache or else fetched; SERIES is
//	               6.1, 6.12, ..., or a full ABI; FLAVOUR is cloud-amd64 unless
//	               given
//	NAME           an entry of the cache
//
// An empty spec means $HVPOST_KERNEL, else the host's own kernel if it is
// readable and has the Hyper-V drivers, else the newest one in the cache.
func Resolve(ctx context.Context, spec string, o Options) (*Kernel, error) {
	c, err := openCache(o.CacheDir)
	if err != nil {
		return nil, err
	}
	if spec == "" {
		spec = os.Getenv(EnvKernel)
	}
	if spec == "" {
		return c.resolveDefault(o)
	}
	if spec == "host" {
		return c.resolveHost(o)
	}
	if d, ok, err := parseDebian(spec); ok {
		if err != nil {
			return nil, err
		}
		return c.resolveDebian(ctx, d, o)
	}
	st, err := os.Stat(spec)
	switch {
	case err == nil && st.IsDir():
		return c.resolveDir(ctx, spec, o)
	case err == nil && strings.HasSuffix(spec, ".deb"):
		return c.resolveDebs(ctx, []string{spec}, o)
	case strings.HasSuffix(spec, ".deb") && strings.Contains(spec, ".deb,"):
		return c.resolveDebs(ctx, strings.Split(spec, ","), o)
	case err == nil:
		return c.resolveImage(spec, o)
	case strings.ContainsRune(spec, '/'):
		return nil, fmt.Errorf("kernel %s: %w", spec, bare(err))
	}
	e, err := c.load(spec)
	if err != nil {
		return nil, fmt.Errorf("kernel %s: no such file, nor a kernel in the cache (see hvpost kernel list)", spec)
	}
	return c.fromEntry(e, o)
}

func (c *cache) resolveDebs(ctx context.Context, files []string, o Options) (*Kernel, error) {
	e, err := c.importDebs(ctx, files, o.Progress)
	if err != nil {
		return nil, err
	}
	return c.fromEntry(e, o)
}

func (c *cache) resolveDefault(o Options) (*Kernel, error) {
	if k, err := c.resolveHost(o); err == nil && k.hasHyperV() {
		return k, nil
	}
	all, err := c.all()
	if err != nil {
		return nil, err
	}
	for _, e := range all {
		if e.meta.Package == "" {
			continue
		}
		return c.fromEntry(e, o)
	}
	return nil, fmt.Errorf("%w: the host's own cannot be used and the cache is empty: get one with hvpost kernel fetch debian:6.12, or name one with -k", ErrNoKernel)
}

func (c *cache) resolveHost(o Options) (*Kernel, error) {
	release, err := hostRelease()
	if err != nil {
		return nil, err
	}
	boot := "/boot/vmlinuz-" + release
	for _, p := range []string{boot, "/lib/modules/" + release + "/vmlinuz"} {
		f, e := openRegular(p)
		if e == nil {
			f.Close()
			return c.resolveImage(p, o)
		}
		if err == nil {
			err = bare(e)
		}
	}
	return nil, fmt.Errorf("kernel host: %s: %w: name another with -k, or get one with hvpost kernel fetch debian:6.12", boot, err)
}

// hasHyperV reports whether the kernel has the VMBus driver, built in or as a
// module that can be found.
func (k *Kernel) hasHyperV() bool {
	if k.ModuleDir != "" {
		_, err := k.Modules("hv_vmbus")
		return err == nil
	}
	// Without modules it must be built in. Linux 6.18 split HYPERV_VMBUS off
	// HYPERV; before, the one option was both.
	return k.Config.BuiltIn("HYPERV_VMBUS") || k.Config.BuiltIn("HYPERV") && compareReleases(k.Release, "6.18") < 0
}

// bare takes the operation and the path off an error whose text will name the
// path anyway.
func bare(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

func hostRelease() (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", fmt.Errorf("uname: %w", err)
	}
	return unix.ByteSliceToString(u.Release[:]), nil
}

// resolveDir finds the kernel in a directory.
func (c *cache) resolveDir(ctx context.Context, dir string, o Options) (*Kernel, error) {
	for _, p := range []string{"arch/x86/boot/bzImage", "arch/x86_64/boot/bzImage", "vmlinux", "bzImage", "vmlinuz"} {
		p = filepath.Join(dir, p)
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() {
			return c.resolveImage(p, o)
		}
	}
	for _, pattern := range []string{"boot/vmlinuz-*", "vmlinuz-*"} {
		found, err := filepath.Glob(filepath.Join(globQuote(dir), pattern))
		if err != nil {
			return nil, fmt.Errorf("kernel %s: %w", dir, err)
		}
		newest := ""
		for _, p := range found {
			if newest == "" || compareReleases(filepath.Base(p), filepath.Base(newest)) > 0 {
				newest = p
			}
		}
		if newest != "" {
			return c.resolveImage(newest, o)
		}
	}
	debs, err := filepath.Glob(filepath.Join(globQuote(dir), "linux-*.deb"))
	if err != nil {
		return nil, fmt.Errorf("kernel %s: %w", dir, err)
	}
	if len(debs) > 0 {
		return c.resolveDebs(ctx, debs, o)
	}
	return nil, fmt.Errorf("kernel %s: no kernel in this directory: expected arch/x86/boot/bzImage, vmlinux, boot/vmlinuz-*, or linux-*.deb", dir)
}

// globQuote makes filepath.Glob take a directory name literally.
func globQuote(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(s)
}

// resolveImage makes a Kernel of an image outside the cache.
func (c *cache) resolveImage(path string, o Options) (*Kernel, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	if real, err = filepath.Abs(real); err != nil {
		return nil, fmt.Errorf("kernel %s: %w", path, err)
	}
	e, err := c.external(real)
	if err != nil {
		return nil, err
	}
	return c.fromEntry(e, o)
}

// external returns the entry that holds what was derived from the image at
// path, made anew if the image has changed.
func (c *cache) external(path string) (*entry, error) {
	id, err := identify(path)
	if err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	name := externalName(path)
	if e, err := c.load(name); err == nil && slices.Equal(e.meta.Origins, []fileID{id}) {
		return e, nil
	}
	m := meta{ImagePath: path, Origins: []fileID{id}}
	if m.Image, err = probeImage(path); err != nil {
		return nil, err
	}
	root, err := c.writable()
	if err != nil {
		return nil, err
	}
	unlock, err := lock(root, name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if e, err := loadEntry(root, name); err == nil && slices.Equal(e.meta.Origins, []fileID{id}) {
		return e, nil
	}
	tmp, err := tempDir(root)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	if err := writeMeta(tmp, m); err != nil {
		return nil, fmt.Errorf("kernel cache: %w", err)
	}
	if err := publish(root, tmp, name); err != nil {
		return nil, err
	}
	return loadEntry(root, name)
}

// fromEntry makes a Kernel of a cache entry.
func (c *cache) fromEntry(e *entry, o Options) (*Kernel, error) {
	m := e.meta
	k := &Kernel{
		Release: m.Image.Release,
		Source:  e.source(),
		Name:    e.name,
		SHA256:  m.Image.SHA256,
		entry:   e,
		cache:   c,
	}
	path := e.path(m.ImagePath)
	f, err := openRegular(path)
	if err != nil {
		return nil, fmt.Errorf("kernel %s: %w", e.name, err)
	}
	f.Close()
	if m.Image.Format == formatELF {
		k.Vmlinux = path
	} else {
		k.Image = path
	}
	k.ModuleDir, err = findModules(e, path, o.ModuleDir)
	if err != nil {
		return nil, err
	}
	if k.Config, err = readConfig(findConfig(e, path, k.ModuleDir)); err != nil {
		return nil, err
	}
	if k.Vmlinux == "" && o.Unpacker != nil {
		if k.Vmlinux, err = c.unpack(e, o); err != nil {
			return nil, err
		}
	}
	return k, nil
}

// isModuleDir reports whether dir looks like /lib/modules/RELEASE or a build
// tree.
func isModuleDir(dir string) bool {
	for _, name := range []string{"modules.dep", "modules.order", "modules.builtin", "modules.dep.bin"} {
		if st, err := os.Stat(filepath.Join(dir, name)); err == nil && st.Mode().IsRegular() {
			return true
		}
	}
	return false
}

// findModules returns the module directory of the kernel image at path, or ""
// if there is none.
func findModules(e *entry, path, override string) (string, error) {
	release := e.meta.Image.Release
	if override != "" {
		for _, dir := range []string{override, filepath.Join(override, "lib/modules", release), filepath.Join(override, release)} {
			if isModuleDir(dir) {
				return dir, nil
			}
		}
		return "", fmt.Errorf("modules %s: no modules.dep or modules.order there, nor in lib/modules/%s below it", override, release)
	}
	if e.meta.Package != "" {
		return e.path(e.meta.ModulesAt), nil
	}
	dir := filepath.Dir(path)
	candidates := []string{}
	if tree, ok := buildTree(path); ok {
		candidates = append(candidates, tree)
	}
	if release != "" {
		up := filepath.Dir(dir)
		candidates = append(candidates,
			filepath.Join(up, "lib/modules", release),
			filepath.Join(up, "usr/lib/modules", release),
			filepath.Join(dir, "lib/modules", release))
		if filepath.Base(dir) == release {
			candidates = append(candidates, dir)
		}
		candidates = append(candidates, filepath.Join("/lib/modules", release))
	}
	for _, d := range candidates {
		if isModuleDir(d) {
			return d, nil
		}
	}
	return "", nil
}

// buildTree returns the top of the kernel build tree that the image at path
// was built in.
func buildTree(path string) (string, bool) {
	dir := filepath.Dir(path)
	if filepath.Base(path) == "vmlinux" {
		_, err := os.Stat(filepath.Join(dir, ".config"))
		return dir, err == nil
	}
	for _, sub := range []string{"/arch/x86/boot", "/arch/x86_64/boot"} {
		if top, ok := strings.CutSuffix(dir, sub); ok {
			return top, true
		}
	}
	return "", false
}

// findConfig returns the path of the configuration of the kernel image at
// path, or "".
func findConfig(e *entry, path, modules string) string {
	if e.meta.Package != "" {
		return e.path(e.meta.ConfigAt)
	}
	var candidates []string
	if tree, ok := buildTree(path); ok {
		candidates = append(candidates, filepath.Join(tree, ".config"))
	}
	if release := e.meta.Image.Release; release != "" {
		candidates = append(candidates, filepath.Join(filepath.Dir(path), "config-"+release))
		if modules != "" {
			candidates = append(candidates, filepath.Join(modules, "config"))
		}
		if running, err := hostRelease(); err == nil && running == release {
			candidates = append(candidates, "/proc/config.gz")
		}
	}
	for _, p := range candidates {
		if f, err := openRegular(p); err == nil {
			f.Close()
			return p
		}
	}
	return ""
}

// unpack returns the path of the ELF image inside the entry's bzImage, from
// the cache if it is there.
func (c *cache) unpack(e *entry, o Options) (string, error) {
	d, err := c.derived(e)
	if err != nil {
		return "", err
	}
	if p := d.find(vmlinuxFile); p != "" {
		return p, nil
	}
	path := e.path(e.meta.ImagePath)
	return d.create(vmlinuxFile, true, func(w *os.File) error {
		f, err := openRegular(path)
		if err != nil {
			return err
		}
		defer f.Close()
		if o.Progress != nil {
			fmt.Fprintf(o.Progress, "unpacking the kernel of %s\n", e.name)
		}
		if err := o.Unpacker(f, w); err != nil {
			return fmt.Errorf("kernel %s: %w", path, err)
		}
		return nil
	})
}
