package kernel

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
)

// Bounds on depmod's files. Those of a distribution kernel with 6000 modules
// are: modules.dep 600 KB, modules.alias 1.5 MB.
const (
	maxDepmodBytes = 64 << 20
	maxModules     = 100_000
	maxLine        = 1 << 20
)

// moduleExts are the endings of module files, as scripts/Makefile.modinst
// makes them.
var moduleExts = []string{".ko", ".ko.xz", ".ko.zst", ".ko.gz"}

// moduleName returns the canonical name of a module file, or false if the
// file is no module. Kbuild's lists may name the object (.o) instead.
func moduleName(file string) (string, bool) {
	base := path.Base(file)
	for _, ext := range append(moduleExts, ".o") {
		if name, ok := strings.CutSuffix(base, ext); ok && name != "" {
			return canonical(name), true
		}
	}
	return "", false
}

// depEntry is one line of modules.dep.
type depEntry struct {
	Path string   // relative to the module directory
	Deps []string // names of all modules it needs, direct or not
}

// parseModulesDep reads modules.dep: "path: path path ...".
func parseModulesDep(r io.Reader) (map[string]depEntry, error) {
	deps := map[string]depEntry{}
	err := eachLine(r, func(line string) error { return addDepLine(deps, line) })
	return deps, err
}

func addDepLine(deps map[string]depEntry, line string) error {
	file, rest, ok := strings.Cut(line, ":")
	if !ok {
		return fmt.Errorf("line %.80q has no colon", line)
	}
	name, ok := moduleName(file)
	if !ok {
		return fmt.Errorf("%.80q is not the name of a module", file)
	}
	if err := checkModulePath(file); err != nil {
		return err
	}
	e := depEntry{Path: file}
	for _, f := range strings.Fields(rest) {
		d, ok := moduleName(f)
		if !ok {
			return fmt.Errorf("%.80q is not the name of a module", f)
		}
		e.Deps = append(e.Deps, d)
	}
	if _, dup := deps[name]; !dup && len(deps) == maxModules {
		return fmt.Errorf("over %d modules: %w", maxModules, errTooBig)
	}
	deps[name] = e
	return nil
}

// checkModulePath refuses paths that leave the module directory. Absolute
// ones are depmod's for directories outside (its "external" keyword).
func checkModulePath(p string) error {
	if p != path.Clean(p) || p == ".." || strings.HasPrefix(p, "../") || strings.ContainsRune(p, 0) {
		return fmt.Errorf("bad module path %.80q", p)
	}
	return nil
}

// parseOrder reads modules.order and modules.builtin: a path a line, of which
// the order matters. It returns name to path.
func parseOrder(r io.Reader) (map[string]string, error) {
	files := map[string]string{}
	err := eachLine(r, func(line string) error {
		name, ok := moduleName(line)
		if !ok {
			return fmt.Errorf("%.80q is not the name of a module", line)
		}
		if err := checkModulePath(line); err != nil {
			return err
		}
		if _, dup := files[name]; dup {
			return nil // the first one counts, as it does for depmod
		}
		if len(files) == maxModules {
			return fmt.Errorf("over %d modules: %w", maxModules, errTooBig)
		}
		files[name] = line
		return nil
	})
	return files, err
}

// parseAliases reads modules.alias: "alias PATTERN module".
func parseAliases(r io.Reader) (map[string][]string, error) {
	aliases := map[string][]string{}
	n := 0
	err := eachLine(r, func(line string) error {
		f := strings.Fields(line)
		if len(f) != 3 || f[0] != "alias" || !plainAlias(f[1]) {
			return nil
		}
		if n++; n > maxModules {
			return fmt.Errorf("over %d aliases: %w", maxModules, errTooBig)
		}
		a := canonical(f[1])
		aliases[a] = append(aliases[a], canonical(f[2]))
		return nil
	})
	return aliases, err
}

// parseSoftdeps reads modules.softdep: "softdep module pre: a post: b".
func parseSoftdeps(r io.Reader) (map[string]moduleInfo, error) {
	soft := map[string]moduleInfo{}
	err := eachLine(r, func(line string) error {
		f := strings.Fields(line)
		if len(f) < 3 || f[0] != "softdep" {
			return nil
		}
		if len(soft) == maxModules {
			return fmt.Errorf("over %d modules: %w", maxModules, errTooBig)
		}
		name := canonical(f[1])
		m := soft[name]
		m.addSoftdep(strings.Join(f[2:], " "))
		soft[name] = m
		return nil
	})
	return soft, err
}

// parseBuiltinModinfo reads modules.builtin.modinfo, "module.key=value"
// strings ended by NUL, and returns the aliases of built-in modules.
func parseBuiltinModinfo(b []byte) map[string][]string {
	aliases := map[string][]string{}
	for _, s := range strings.Split(string(b), "\x00") {
		name, rest, _ := strings.Cut(s, ".")
		if a, ok := strings.CutPrefix(rest, "alias="); ok && plainAlias(a) && len(aliases) < maxModules {
			a = canonical(a)
			aliases[a] = append(aliases[a], canonical(name))
		}
	}
	return aliases
}

// eachLine calls f for every line that is neither empty nor a comment.
func eachLine(r io.Reader, f func(line string) error) error {
	s := bufio.NewScanner(io.LimitReader(r, maxDepmodBytes))
	s.Buffer(nil, maxLine)
	for s.Scan() {
		line := strings.TrimSpace(s.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		if err := f(line); err != nil {
			return err
		}
	}
	return s.Err()
}

// The binary index of kmod (libkmod-index.h), big endian: magic, version,
// offset of the root node. The top bits of a node's offset say what the node
// has: a prefix (a string), children (first and last character, an offset
// for each in between), values (a count, then priority and string of each).
const (
	depBinMagic   = 0xb007f457
	depBinMajor   = 2 // upper half of the version
	nodePrefix    = 0x80000000
	nodeValues    = 0x40000000
	nodeChildren  = 0x20000000
	nodeOffset    = 0x0fffffff
	maxIndexDepth = 256 // characters in a module's name, PATH_MAX at most
)

var errBadIndex = errors.New("corrupt index")

// parseModulesDepBin reads modules.dep.bin, a trie of module names whose
// values are the lines of modules.dep.
func parseModulesDepBin(b []byte) (map[string]depEntry, error) {
	be := binary.BigEndian
	if len(b) < 12 || be.Uint32(b) != depBinMagic || be.Uint32(b[4:])>>16 != depBinMajor {
		return nil, fmt.Errorf("%w: not one of version %d", errBadIndex, depBinMajor)
	}
	x := depBin{b: b, deps: map[string]depEntry{}, seen: map[uint32]bool{}}
	if root := be.Uint32(b[8:]); root != 0 {
		if err := x.node(root, 0); err != nil {
			return nil, err
		}
	}
	return x.deps, nil
}

type depBin struct {
	b    []byte
	deps map[string]depEntry
	seen map[uint32]bool // a tree has no node twice; a loop would
}

func (x *depBin) node(at uint32, depth int) error {
	off := at & nodeOffset
	if x.seen[off] || depth > maxIndexDepth || int(off) > len(x.b) {
		return fmt.Errorf("%w: node at %#x", errBadIndex, off)
	}
	x.seen[off] = true
	r := indexReader{x.b[off:], true}
	if at&nodePrefix != 0 {
		r.str()
	}
	var children []uint32
	if at&nodeChildren != 0 {
		first, last := r.u8(), r.u8()
		if last < first {
			return fmt.Errorf("%w: node at %#x", errBadIndex, off)
		}
		for range int(last) - int(first) + 1 {
			children = append(children, r.u32())
		}
	}
	if at&nodeValues != 0 {
		for n := r.u32(); n > 0 && r.ok; n-- {
			r.u32() // priority
			if line := r.str(); r.ok {
				if err := addDepLine(x.deps, line); err != nil {
					return err
				}
			}
		}
	}
	if !r.ok {
		return fmt.Errorf("%w: node at %#x", errBadIndex, off)
	}
	for _, c := range children {
		if c == 0 {
			continue
		}
		if err := x.node(c, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// indexReader reads fields until one does not fit.
type indexReader struct {
	b  []byte
	ok bool
}

func (r *indexReader) take(n int) []byte {
	if n > len(r.b) {
		r.b, r.ok = nil, false
		return nil
	}
	p := r.b[:n]
	r.b = r.b[n:]
	return p
}

func (r *indexReader) u8() byte {
	if p := r.take(1); len(p) == 1 {
		return p[0]
	}
	return 0
}

func (r *indexReader) u32() uint32 {
	if p := r.take(4); len(p) == 4 {
		return binary.BigEndian.Uint32(p)
	}
	return 0
}

func (r *indexReader) str() string {
	n := 0
	for n < len(r.b) && r.b[n] != 0 {
		n++
	}
	if n == len(r.b) {
		r.b, r.ok = nil, false
		return ""
	}
	s := string(r.b[:n])
	r.b = r.b[n+1:]
	return s
}
