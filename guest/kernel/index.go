package kernel

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
)

// A moduleSet is what is known of the modules in one directory. With depmod's
// files all of it comes from them. Without (a package whose installation
// would have run depmod, a build tree) the modules themselves are read, each
// when it is first needed, and what they say is kept in the cache.
type moduleSet struct {
	dir     string // module directory
	derived *derived

	files          map[string]string   // module name to path, relative to dir or absolute
	builtin        map[string]string   // built-in module names; the values do not matter
	builtinModinfo []byte              // of all built-in modules
	builtinAliases map[string][]string // alias to names; nil until asked for

	depmod  map[string]depEntry // nil without modules.dep
	soft    map[string]moduleInfo
	aliases map[string][]string // nil until asked for

	index moduleIndex // unused with depmod's files
	dirty bool        // index holds something new
}

// isBuiltin reports whether a canonical name, or a module with that alias, is
// part of the kernel.
func (s *moduleSet) isBuiltin(name string) bool {
	if s.builtin[name] != "" {
		return true
	}
	if s.builtinAliases == nil {
		s.builtinAliases = parseBuiltinModinfo(s.builtinModinfo)
	}
	return len(s.builtinAliases[name]) > 0
}

// moduleIndex is the cached knowledge of modules without depmod's files. In
// its file the header is a line of JSON, and each module one more: its name, a
// space, and JSON. A run needs a few of a thousand modules, so a line is parsed
// when its module is asked for.
type moduleIndex struct {
	indexHeader
	lines   []byte             // as read; every line begins with a newline
	modules map[string]indexed // parsed or new; goes before lines
}

type indexHeader struct {
	Stamp    string // of the directory it was made for
	Complete bool   // all modules have been read
}

// parseIndex reads the file. A module's line that is damaged counts as absent,
// when it is asked for.
func parseIndex(b []byte) (moduleIndex, error) {
	head, _, _ := bytes.Cut(b, []byte("\n"))
	var x moduleIndex
	err := json.Unmarshal(head, &x.indexHeader)
	x.lines = b[len(head):]
	return x, err
}

// get returns what is known of a module.
func (x *moduleIndex) get(name string) (indexed, bool) {
	if i, ok := x.modules[name]; ok {
		return i, true
	}
	_, line, ok := bytes.Cut(x.lines, []byte("\n"+name+" "))
	if !ok {
		return indexed{}, false
	}
	line, _, _ = bytes.Cut(line, []byte("\n"))
	var i indexed
	if json.Unmarshal(line, &i) != nil {
		return indexed{}, false
	}
	x.put(name, i)
	return i, true
}

func (x *moduleIndex) put(name string, i indexed) {
	if x.modules == nil {
		x.modules = map[string]indexed{}
	}
	x.modules[name] = i
}

// all parses what is left and returns all modules.
func (x *moduleIndex) all() map[string]indexed {
	for line := range bytes.SplitSeq(x.lines, []byte("\n")) {
		if name, _, ok := bytes.Cut(line, []byte(" ")); ok {
			x.get(string(name))
		}
	}
	x.lines = nil
	return x.modules
}

// marshal is the inverse of parseIndex.
func (x *moduleIndex) marshal() ([]byte, error) {
	b, err := json.Marshal(x.indexHeader)
	if err != nil {
		return nil, err
	}
	modules := x.all()
	for _, name := range slices.Sorted(maps.Keys(modules)) {
		line, err := json.Marshal(modules[name])
		if err != nil {
			return nil, err
		}
		b = append(append(append(append(b, '\n'), name...), ' '), line...)
	}
	return append(b, '\n'), nil
}

type indexed struct {
	Size  int64 // of the file, and its time in ns: is it still the same?
	MTime int64
	moduleInfo
}

// readModuleSet reads the lists of the module directory dir.
func readModuleSet(dir string, d *derived) (*moduleSet, error) {
	s := &moduleSet{dir: dir, derived: d}
	var err error
	if s.builtin, err = readList(dir, "modules.builtin", parseOrder); err != nil {
		return nil, err
	}
	s.builtinModinfo, err = readList(dir, "modules.builtin.modinfo", func(r io.Reader) ([]byte, error) { return readBounded(r, maxDepmodBytes) })
	if err != nil {
		return nil, err
	}
	if s.depmod, err = readList(dir, "modules.dep", parseModulesDep); err != nil {
		return nil, err
	}
	if len(s.depmod) == 0 {
		s.depmod, err = readList(dir, "modules.dep.bin", func(r io.Reader) (map[string]depEntry, error) {
			b, err := readBounded(r, maxDepmodBytes)
			if err != nil {
				return nil, err
			}
			return parseModulesDepBin(b)
		})
		if err != nil {
			return nil, err
		}
	}
	if len(s.depmod) > 0 {
		s.files = make(map[string]string, len(s.depmod))
		for name, e := range s.depmod {
			s.files[name] = e.Path
		}
		s.soft, err = readList(dir, "modules.softdep", parseSoftdeps)
		return s, err
	}
	s.depmod = nil
	if s.files, err = listModules(dir); err != nil {
		return nil, err
	}
	s.load()
	return s, nil
}

// readList parses one file of the module directory; one that is not there is
// an empty one.
func readList[T any](dir, name string, parse func(io.Reader) (T, error)) (T, error) {
	var zero T
	p := filepath.Join(dir, name)
	f, err := openRegular(p)
	if errors.Is(err, fs.ErrNotExist) {
		return zero, nil
	}
	if err != nil {
		return zero, err
	}
	defer f.Close()
	v, err := parse(f)
	if err != nil {
		return zero, fmt.Errorf("%s: %w", p, err)
	}
	return v, nil
}

// listModules finds the modules of a directory without depmod's files: those
// of modules.order, or of the whole tree if there is none. Modules installed
// later in updates/ and extra/ take precedence, as they do for depmod.
func listModules(dir string) (map[string]string, error) {
	files, err := readList(dir, "modules.order", parseOrder)
	if err != nil {
		return nil, err
	}
	subs := []string{"extra", "updates"}
	if files == nil {
		files = map[string]string{}
		subs = append([]string{"kernel"}, subs...)
	}
	for _, sub := range subs {
		err := filepath.WalkDir(filepath.Join(dir, sub), func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				if errors.Is(err, fs.ErrNotExist) {
					return nil
				}
				return err
			}
			name, ok := moduleName(p)
			if !ok || !d.Type().IsRegular() || filepath.Ext(p) == ".o" {
				return nil
			}
			if len(files) == maxModules {
				return fmt.Errorf("over %d modules: %w", maxModules, errTooBig)
			}
			rel, err := filepath.Rel(dir, p)
			files[name] = rel
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("modules %s: %w", dir, err)
		}
	}
	return files, nil
}

// stamp identifies the state of the module directory.
func (s *moduleSet) stamp() string {
	var b bytes.Buffer
	b.WriteString(s.dir)
	for _, name := range []string{"modules.order", "modules.builtin", "updates", "extra"} {
		if st, err := os.Stat(filepath.Join(s.dir, name)); err == nil {
			b.WriteByte('|')
			b.WriteString(strconv.FormatInt(st.Size(), 10) + "." + strconv.FormatInt(st.ModTime().UnixNano(), 10))
		}
	}
	return b.String()
}

// load takes the cached index if it is of this directory as it is now. One
// that cannot be read is made anew.
func (s *moduleSet) load() {
	stamp := s.stamp()
	if p := s.derived.find(indexFile); p != "" {
		if f, err := openRegular(p); err == nil {
			b, err := readBounded(f, maxDepmodBytes)
			f.Close()
			if err == nil {
				if x, err := parseIndex(b); err == nil && x.Stamp == stamp {
					s.index = x
					return
				}
			}
		}
	}
	s.index = moduleIndex{indexHeader: indexHeader{Stamp: stamp}}
}

// save writes the index if it has grown.
func (s *moduleSet) save() error {
	if !s.dirty {
		return nil
	}
	b, err := s.index.marshal()
	if err != nil {
		return err
	}
	_, err = s.derived.create(indexFile, false, func(f *os.File) error {
		_, err := f.Write(b)
		return err
	})
	if err == nil {
		s.dirty = false
	}
	return err
}

// lookup returns the modules that a name or alias stands for, or says that it
// is built in. Finding none is not an error.
func (s *moduleSet) lookup(name string) (found []string, builtin bool, err error) {
	name = canonical(name)
	switch {
	case s.files[name] != "":
		return []string{name}, false, nil
	case s.isBuiltin(name):
		return nil, true, nil
	}
	if s.aliases == nil {
		if err := s.readAliases(); err != nil {
			return nil, false, err
		}
	}
	for _, m := range s.aliases[name] {
		if s.files[m] != "" {
			found = append(found, m)
		} else if s.builtin[m] != "" {
			return nil, true, nil
		}
	}
	return found, false, nil
}

// readAliases fills s.aliases from modules.alias or from all modules.
func (s *moduleSet) readAliases() error {
	var err error
	if s.depmod != nil {
		s.aliases, err = readList(s.dir, "modules.alias", parseAliases)
		if s.aliases == nil && err == nil {
			s.aliases = map[string][]string{}
		}
		return err
	}
	if err := s.readAll(); err != nil {
		return err
	}
	aliases := map[string][]string{}
	modules := s.index.all()
	for _, name := range slices.Sorted(maps.Keys(modules)) {
		for _, a := range modules[name].Aliases {
			a = canonical(a)
			aliases[a] = append(aliases[a], name)
		}
	}
	s.aliases = aliases
	return nil
}

// info returns the dependencies of a module in s.files.
func (s *moduleSet) info(name string) (moduleInfo, error) {
	if s.depmod != nil {
		m := s.soft[name]
		m.Deps = s.depmod[name].Deps
		return m, nil
	}
	src, st, err := s.source(name)
	if err != nil {
		return moduleInfo{}, err
	}
	if i, ok := s.index.get(name); ok && i.is(st) {
		return i.moduleInfo, nil
	}
	// It is needed whole soon, so the copy in the cache is made right away.
	plain, err := s.decompressed(name, src, st)
	if err != nil {
		return moduleInfo{}, err
	}
	i, err := inspect(plain, st)
	if err != nil {
		return moduleInfo{}, err
	}
	s.keep(name, i)
	return i.moduleInfo, nil
}

func (i indexed) is(st os.FileInfo) bool {
	return i.Size == st.Size() && i.MTime == st.ModTime().UnixNano()
}

func (s *moduleSet) keep(name string, i indexed) {
	s.index.put(name, i)
	s.dirty = true
}

// inspect reads what the module in path, compressed or not, says of itself;
// st describes the file that it came from.
func inspect(path string, st os.FileInfo) (indexed, error) {
	var b bytes.Buffer
	if err := readModule(path, &b); err != nil {
		return indexed{}, err
	}
	m, err := modinfo(b.Bytes())
	if err != nil {
		return indexed{}, fmt.Errorf("%s: %w", path, err)
	}
	return indexed{Size: st.Size(), MTime: st.ModTime().UnixNano(), moduleInfo: parseModinfo(m)}, nil
}

// readAll reads every module that the index lacks, in parallel: decompressing
// a thousand modules takes seconds.
func (s *moduleSet) readAll() error {
	if s.index.Complete {
		return nil
	}
	type result struct {
		name string
		indexed
		err error
	}
	var todo []string
	for _, name := range slices.Sorted(maps.Keys(s.files)) {
		if _, ok := s.index.get(name); !ok {
			todo = append(todo, name)
		}
	}
	results := make([]result, len(todo))
	next := make(chan int)
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for i := range next {
				r := result{name: todo[i]}
				src, st, err := s.source(todo[i])
				if err == nil {
					r.indexed, err = inspect(src, st)
				}
				r.err = err
				results[i] = r
			}
		})
	}
	for i := range todo {
		next <- i
	}
	close(next)
	wg.Wait()
	for _, r := range results {
		switch {
		case errors.Is(r.err, fs.ErrNotExist):
			// Listed but not installed (a build tree that was not built
			// whole): nothing can depend on its aliases.
		case r.err != nil:
			return r.err
		default:
			s.keep(r.name, r.indexed)
		}
	}
	s.index.Complete, s.dirty = true, true
	return nil
}
