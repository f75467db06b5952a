package kernel

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
)

// ErrNoModules reports a kernel whose modules are not known: an image without
// a module directory.
var ErrNoModules = errors.New("no modules directory")

// ErrNoModule reports a module that a kernel does not have.
var ErrNoModule = errors.New("no such module")

// A Module is a module file, ready to be loaded: ELF, not compressed.
type Module struct {
	Name   string   // as the kernel spells it: hv_vmbus, hid_hyperv
	Path   string   // of the decompressed file on the host
	Size   int64    // bytes of that file
	Source string   // the file that the kernel came with; Path if that is not compressed
	Deps   []string // loadable modules it needs symbols of
	Soft   bool     // nobody needs its symbols: if it fails to load, go on
}

// Open opens the decompressed file.
func (m Module) Open() (*os.File, error) { return openRegular(m.Path) }

// Modules returns the named modules and all that they need, in the order to
// load them. A name may be that of a module, with dashes or underscores, or
// one of its aliases ("fs-ext4", "vmbus:..."). Modules that are built into the
// kernel are left out. Soft dependencies come along where they exist.
//
// Compressed modules are decompressed into the cache: the kernel's own
// decompression may not be enabled, and the host does it once.
func (k *Kernel) Modules(names ...string) ([]Module, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s, err := k.modules()
	if err != nil {
		return nil, err
	}
	o := ordering{set: s, state: map[string]visitState{}}
	for _, name := range names {
		if err := o.request(name); err != nil {
			return nil, fmt.Errorf("module %s: kernel %s: %w", name, k.label(), err)
		}
	}
	hard := o.hard()
	list := make([]Module, 0, len(o.order))
	for _, name := range o.order {
		m, err := s.prepare(name)
		if err != nil {
			return nil, fmt.Errorf("module %s: kernel %s: %w", name, k.label(), err)
		}
		m.Soft = !hard[name]
		list = append(list, m)
	}
	return list, s.save()
}

// BuiltIn reports whether the named module, or one with that alias, is part of
// the kernel image. It is false for a kernel without a module directory.
func (k *Kernel) BuiltIn(name string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	s, err := k.modules()
	if err != nil {
		return false
	}
	name = canonical(name)
	return s.isBuiltin(name)
}

// label names the kernel in error texts.
func (k *Kernel) label() string {
	if k.Release != "" {
		return k.Release
	}
	return k.Source
}

// modules returns the module set. k.mu is held.
func (k *Kernel) modules() (*moduleSet, error) {
	if k.ModuleDir == "" {
		return nil, fmt.Errorf("kernel %s: %w: use a kernel with its modules (a .deb, a build tree) or one that has them built in", k.label(), ErrNoModules)
	}
	if k.set != nil {
		return k.set, nil
	}
	d, err := k.cache.derived(k.entry)
	if err != nil {
		return nil, err
	}
	s, err := readModuleSet(k.ModuleDir, d)
	if err != nil {
		return nil, fmt.Errorf("kernel %s: %w", k.label(), err)
	}
	k.set = s
	return s, nil
}

type visitState int

const (
	unseen visitState = iota
	visiting
	done
)

// ordering is one depth-first walk over dependencies.
type ordering struct {
	set       *moduleSet
	state     map[string]visitState
	order     []string
	requested []string // resolved to module names
}

// request adds a module that was asked for by name or alias.
func (o *ordering) request(name string) error {
	found, builtin, err := o.set.lookup(name)
	if err != nil || builtin {
		return err
	}
	if len(found) == 0 {
		return ErrNoModule
	}
	for _, m := range found {
		// Several modules may offer one thing ("crc32c"), and only some may
		// suit the processor: then none of them is indispensable.
		if len(found) == 1 {
			o.requested = append(o.requested, m)
		}
		if err := o.visit(m); err != nil {
			return err
		}
	}
	return nil
}

func (o *ordering) visit(name string) error {
	switch o.state[name] {
	case done:
		return nil
	case visiting:
		return fmt.Errorf("dependency cycle through %s", name)
	}
	o.state[name] = visiting
	info, err := o.set.info(name)
	if err != nil {
		return err
	}
	for _, d := range info.Pre {
		if err := o.soft(d); err != nil {
			return err
		}
	}
	for _, d := range info.Deps {
		if o.set.builtin[d] != "" {
			continue
		}
		if o.set.files[d] == "" {
			return fmt.Errorf("%s needs %s: %w", name, d, ErrNoModule)
		}
		if err := o.visit(d); err != nil {
			return err
		}
	}
	o.state[name] = done
	o.order = append(o.order, name)
	for _, d := range info.Post {
		if err := o.soft(d); err != nil {
			return err
		}
	}
	return nil
}

// soft visits what a soft dependency names, as far as it is there.
func (o *ordering) soft(name string) error {
	found, _, err := o.set.lookup(name)
	if err != nil {
		return err
	}
	for _, m := range found {
		if o.state[m] != unseen {
			continue
		}
		mark, was := len(o.order), make(map[string]visitState, len(o.state))
		for k, v := range o.state {
			was[k] = v
		}
		if err := o.visit(m); err != nil {
			// As if it had not been asked for.
			o.order, o.state = o.order[:mark], was
		}
	}
	return nil
}

// hard returns the modules that those requested cannot do without.
func (o *ordering) hard() map[string]bool {
	need := map[string]bool{}
	for work := slices.Clone(o.requested); len(work) > 0; {
		m := work[len(work)-1]
		work = work[:len(work)-1]
		if need[m] {
			continue
		}
		need[m] = true
		if info, err := o.set.info(m); err == nil { // it was read before
			for _, d := range info.Deps {
				if o.set.files[d] != "" && o.set.builtin[d] == "" {
					work = append(work, d)
				}
			}
		}
	}
	return need
}

// source finds the file of a module. Lists name it without the compression
// that it was installed with, and those of build trees by its object.
func (s *moduleSet) source(name string) (string, os.FileInfo, error) {
	p := s.files[name]
	if !filepath.IsAbs(p) {
		p = filepath.Join(s.dir, p)
	}
	stem := p
	for _, ext := range append([]string{".o"}, moduleExts...) {
		if t, ok := cutExt(p, ext); ok {
			stem = t
		}
	}
	var first error
	for _, c := range append([]string{p}, stem+".ko", stem+".ko.xz", stem+".ko.zst", stem+".ko.gz") {
		if _, isObject := cutExt(c, ".o"); isObject {
			continue
		}
		st, err := os.Stat(c)
		if err == nil && st.Mode().IsRegular() {
			return c, st, nil
		}
		if first == nil {
			first = err
		}
	}
	if first == nil {
		first = fmt.Errorf("%s: not a regular file", p)
	}
	return "", nil, first
}

func cutExt(p, ext string) (string, bool) {
	if len(p) > len(ext) && p[len(p)-len(ext):] == ext {
		return p[:len(p)-len(ext)], true
	}
	return p, false
}

// prepare makes the module's decompressed file available.
func (s *moduleSet) prepare(name string) (Module, error) {
	info, err := s.info(name)
	if err != nil {
		return Module{}, err
	}
	m := Module{Name: name}
	for _, d := range info.Deps {
		if s.builtin[d] == "" {
			m.Deps = append(m.Deps, d)
		}
	}
	src, st, err := s.source(name)
	if err != nil {
		return Module{}, err
	}
	m.Source = src
	if m.Path, err = s.decompressed(name, src, st); err != nil {
		return Module{}, err
	}
	if st, err = os.Stat(m.Path); err != nil {
		return Module{}, err
	}
	m.Size = st.Size()
	return m, nil
}

// decompressed returns the path of a plain copy of src, which is src itself
// if it is not compressed. The copy's name holds src's identity, so a copy of
// an older file is never taken for it.
func (s *moduleSet) decompressed(name, src string, st os.FileInfo) (string, error) {
	if _, plain := cutExt(src, ".ko"); plain {
		return src, nil
	}
	id := sha256.Sum256([]byte(src + "\x00" + strconv.FormatInt(st.Size(), 10) + "\x00" + strconv.FormatInt(st.ModTime().UnixNano(), 10)))
	file := filepath.Join(moduleDir, name+"-"+hex.EncodeToString(id[:4])+".ko")
	if p := s.derived.find(file); p != "" {
		return p, nil
	}
	return s.derived.create(file, false, func(w *os.File) error {
		return readModule(src, w)
	})
}

// readModule writes the decompressed content of a module file to w.
func readModule(src string, w io.Writer) error {
	f, err := openRegular(src)
	if err != nil {
		return err
	}
	defer f.Close()
	r, err := decompress(f)
	if err != nil {
		return fmt.Errorf("%s: %w", src, err)
	}
	defer r.Close()
	if _, err := copyBounded(w, r, maxModuleBytes); err != nil {
		return fmt.Errorf("%s: %w", src, err)
	}
	return nil
}
