package initrd

import (
	"bufio"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

const (
	maxObjects      = 4096 // shared libraries of one program
	maxShebang      = 256  // bytes of "#!" line that the kernel reads (BINPRM_BUF_SIZE)
	maxInterpreters = 5    // scripts that interpret scripts, as in the kernel's exec
)

// What a file needs to run.
type kind int

const (
	notProgram kind = iota
	elfProgram
	script
)

// programKind tells by its first bytes what the regular file at path is.
func programKind(path string) (kind, error) {
	f, err := os.Open(path)
	if err != nil {
		return notProgram, err
	}
	defer f.Close()
	var head [4]byte
	n, err := io.ReadFull(f, head[:])
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return notProgram, fmt.Errorf("%s: %w", path, err)
	}
	switch s := string(head[:n]); {
	case s == elf.ELFMAG:
		return elfProgram, nil
	case strings.HasPrefix(s, "#!"):
		return script, nil
	}
	return notProgram, nil
}

// runsHere reports whether the file at path is a script or a program for x86;
// a damaged one or one for another machine is somebody's data.
func runsHere(path string) (bool, error) {
	k, err := programKind(path)
	if err != nil || k != elfProgram {
		return k == script, err
	}
	o, err := readObject(path)
	return err == nil && (o.machine == elf.EM_X86_64 || o.machine == elf.EM_386), nil
}

// AddELF adds a program with what it takes to run: an ELF file with its
// interpreter and its shared libraries, those found the way ld.so(8) finds
// them; a script with its #! interpreter, and the program that it names if
// that is env(1). Libraries keep their paths. What a program opens by itself
// at run time (plugins, the modules of a language) is not known here.
func (b *Builder) AddELF(hostPath, guestPath string) error {
	return b.addProgram(hostPath, guestPath, maxInterpreters)
}

func (b *Builder) addProgram(hostPath, guestPath string, depth int) error {
	if err := b.AddFile(hostPath, guestPath); err != nil {
		return err
	}
	k, err := programKind(hostPath)
	if err != nil {
		return err
	}
	switch k {
	case elfProgram:
		return b.addLibraries(hostPath, guestPath)
	case script:
		if depth == 0 {
			return fmt.Errorf("%s: scripts interpret scripts more than %d deep", hostPath, maxInterpreters)
		}
		return b.addInterpreter(hostPath, depth-1)
	}
	return fmt.Errorf("%s: neither an ELF file nor a script with #!", hostPath)
}

// addInterpreter adds what the first line of a script names.
func (b *Builder) addInterpreter(hostPath string, depth int) error {
	f, err := os.Open(hostPath)
	if err != nil {
		return err
	}
	defer f.Close()
	line, err := bufio.NewReader(io.LimitReader(f, maxShebang)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("%s: %w", hostPath, err)
	}
	words := strings.Fields(strings.TrimPrefix(line, "#!"))
	if len(words) == 0 || !filepath.IsAbs(words[0]) {
		return fmt.Errorf("%s: the #! line names no interpreter by its absolute path", hostPath)
	}
	if err := b.addOnce(words[0], depth, hostPath); err != nil {
		return err
	}
	if filepath.Base(words[0]) != "env" {
		return nil
	}
	for _, w := range words[1:] {
		if strings.HasPrefix(w, "-") || strings.Contains(w, "=") { // env's own
			continue
		}
		p, err := exec.LookPath(w)
		if err != nil {
			return fmt.Errorf("%s: interpreter %s: not found in PATH", hostPath, w)
		}
		if p, err = filepath.Abs(p); err != nil {
			return fmt.Errorf("%s: interpreter %s: %w", hostPath, w, err)
		}
		return b.addOnce(p, depth, hostPath)
	}
	return nil
}

// addOnce adds a program under its host path unless something is there.
func (b *Builder) addOnce(path string, depth int, user string) error {
	if b.Has(path) {
		return nil
	}
	if err := b.addProgram(path, path, depth); err != nil {
		return fmt.Errorf("%s: interpreter: %w", user, err)
	}
	return nil
}

// object is a loaded ELF file: what the search for its libraries depends on.
type object struct {
	name        string // that it was needed by
	host, guest string // paths; guest is set when it is in the image
	class       elf.Class
	machine     elf.Machine
	interp      string
	needed      []string
	rpath       []string // DT_RPATH: also for what its libraries need
	runpath     []string // DT_RUNPATH: for its own needs only
	parent      *object  // that needed it first
}

// readObject reads the dynamic section of an ELF file.
func readObject(path string) (*object, error) {
	f, err := elf.Open(path)
	if err != nil {
		var p *os.PathError
		if errors.As(err, &p) {
			return nil, err
		}
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	defer f.Close()
	o := &object{host: path, class: f.Class, machine: f.Machine}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP && p.Filesz <= maxPathLen+1 {
			b := make([]byte, p.Filesz)
			if _, err := p.ReadAt(b, 0); err != nil {
				return nil, fmt.Errorf("%s: program interpreter: %w", path, err)
			}
			o.interp = strings.TrimRight(string(b), "\x00")
		}
	}
	for _, d := range []struct {
		tag elf.DynTag
		to  *[]string
	}{{elf.DT_NEEDED, &o.needed}, {elf.DT_RPATH, &o.rpath}, {elf.DT_RUNPATH, &o.runpath}} {
		// Without a dynamic section there is none of them and no error.
		if *d.to, err = f.DynString(d.tag); err != nil {
			return nil, fmt.Errorf("%s: dynamic section: %w", path, err)
		}
	}
	if len(o.runpath) > 0 {
		o.rpath = nil // ld.so(8): ignored then
	}
	return o, nil
}

// addLibraries adds the interpreter and the shared libraries of the ELF file
// at hostPath, which is in the image at guestPath.
func (b *Builder) addLibraries(hostPath, guestPath string) error {
	o, err := readObject(hostPath)
	if err != nil {
		return err
	}
	o.guest = guestPath
	if o.interp == "" && len(o.needed) == 0 {
		return nil // static
	}
	if b.search == nil {
		b.search = newLibrarySearch()
	}
	loaded := map[string]*object{}
	var system string // directory of the C library: one the interpreter knows
	if o.interp != "" {
		if !filepath.IsAbs(o.interp) {
			return fmt.Errorf("%s: program interpreter %q: not an absolute path", hostPath, o.interp)
		}
		if err := b.AddFile(o.interp, o.interp); err != nil {
			return fmt.Errorf("%s: program interpreter: %w", hostPath, err)
		}
		// Where the C library is its own interpreter, programs need it by
		// another name; ld.so knows itself by that name too.
		loaded[filepath.Base(o.interp)] = &object{host: o.interp, guest: o.interp}
		system = filepath.Dir(o.interp)
	}
	var searched []*object // found where the guest's ld.so may not look
	queue := []*object{o}
	for len(queue) > 0 {
		o, queue = queue[0], queue[1:]
		for _, name := range o.needed {
			if loaded[name] != nil {
				continue
			}
			if len(loaded) == maxObjects {
				return fmt.Errorf("%s: over %d shared libraries", hostPath, maxObjects)
			}
			lib, how, err := b.find(name, o)
			if err != nil {
				return err
			}
			if lib == nil {
				return fmt.Errorf("%s: needs %s: no such library on this host: install it, or name its directory in LD_LIBRARY_PATH", o.host, name)
			}
			lib.name, lib.parent = name, o
			loaded[name] = lib
			if err := b.placeLibrary(lib, how); err != nil {
				return err
			}
			if strings.HasPrefix(name, "libc.so") {
				system = filepath.Dir(lib.guest)
			}
			if how == bySearch {
				searched = append(searched, lib)
			}
			queue = append(queue, lib)
		}
	}
	// The guest has neither the caller's LD_LIBRARY_PATH nor an ld.so.cache,
	// and which directories its ld.so knows differs between distributions:
	// the C library's is one of them, so everything gets a name there.
	for _, lib := range searched {
		dir := filepath.Dir(lib.guest)
		link := filepath.Join(system, lib.name)
		if system == "" || strings.TrimPrefix(dir, "/usr") == strings.TrimPrefix(system, "/usr") || b.Has(link) {
			continue
		}
		if err := b.AddSymlink(lib.guest, link); err != nil {
			return err
		}
	}
	return nil
}

// placeLibrary adds a library to the image, once per file, and sets its guest
// path.
func (b *Builder) placeLibrary(lib *object, how found) error {
	guest := lib.guest
	if how != byOrigin || guest == "" {
		guest = lib.host
	}
	lib.guest = guest
	id, err := identify(lib.host)
	if err != nil {
		return err
	}
	if first, ok := b.libs[id]; ok && b.Has(first) {
		if first == guest || b.Has(guest) {
			return nil
		}
		return b.AddSymlink(first, guest)
	}
	if err := b.AddFile(lib.host, guest); err != nil {
		return err
	}
	b.libs[id] = guest
	return nil
}

func identify(path string) (hostID, error) {
	st, err := os.Stat(path)
	if err != nil {
		return hostID{}, err
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return hostID{uint64(sys.Dev), sys.Ino}, nil
	}
	return hostID{}, fmt.Errorf("%s: no inode number", path)
}

// found says how a library was found, and so whether the guest will find it
// at the same path.
type found int

const (
	byPath   found = iota // by its full path or an absolute RPATH: the same in the guest
	byOrigin              // through $ORIGIN: relative to the object that needs it
	bySearch              // through LD_LIBRARY_PATH, ld.so.cache or a default directory
)

// find looks for the library that o needs, in the order of ld.so(8). It
// returns nil if there is none.
func (b *Builder) find(name string, o *object) (*object, found, error) {
	if strings.Contains(name, "/") {
		host, guest, origin := expand(name, o)
		lib, err := b.try(host, o)
		if lib != nil && origin {
			lib.guest = guest
			return lib, byOrigin, err
		}
		return lib, byPath, err
	}
	in := func(dirs []string, from *object, how found) (*object, found, error) {
		for _, d := range dirs {
			host, guest, origin := expand(d, from)
			lib, err := b.try(filepath.Join(host, name), o)
			if lib == nil && err == nil {
				continue
			}
			if lib != nil && origin {
				lib.guest = filepath.Join(guest, name)
				how = byOrigin
			}
			return lib, how, err
		}
		return nil, how, nil
	}
	for p := o; p != nil && len(o.runpath) == 0; p = p.parent {
		if lib, how, err := in(splitPath(p.rpath), p, byPath); lib != nil || err != nil {
			return lib, how, err
		}
	}
	if lib, how, err := in(splitPath([]string{b.LibraryPath}), o, bySearch); lib != nil || err != nil {
		return lib, how, err
	}
	if lib, how, err := in(splitPath(o.runpath), o, byPath); lib != nil || err != nil {
		return lib, how, err
	}
	for _, p := range b.search.cached[name] {
		if lib, err := b.try(p, o); lib != nil || err != nil {
			return lib, bySearch, err
		}
	}
	return in(slices.Concat(b.search.defaults, b.search.configured), o, bySearch)
}

// try returns the object at path if it can be loaded together with o. A file
// for another machine is passed over, as ld.so does.
func (b *Builder) try(path string, o *object) (*object, error) {
	if st, err := os.Stat(path); err != nil || !st.Mode().IsRegular() {
		return nil, nil
	}
	lib, err := readObject(path)
	if err != nil {
		if errors.Is(err, os.ErrPermission) {
			return nil, err
		}
		return nil, nil // a linker script, say
	}
	if lib.class != o.class || lib.machine != o.machine {
		return nil, nil
	}
	lib.interp = "" // of a library that is a program too: not used
	if lib.host, err = filepath.Abs(lib.host); err != nil {
		return nil, err
	}
	return lib, nil
}

// splitPath splits colon-separated lists of directories. An empty directory
// would be the current one: of no use in the guest, and left out.
func splitPath(lists []string) []string {
	var dirs []string
	for _, l := range lists {
		for _, d := range strings.FieldsFunc(l, func(r rune) bool { return r == ':' || r == ';' }) {
			dirs = append(dirs, d)
		}
	}
	return dirs
}

// expand replaces the dynamic string tokens of ld.so(8) in p, for the host and
// for the guest, where $ORIGIN may be another directory.
func expand(p string, o *object) (host, guest string, origin bool) {
	lib := "lib64"
	if o.class == elf.ELFCLASS32 {
		lib = "lib"
	}
	p = strings.NewReplacer("$LIB", lib, "${LIB}", lib, "$PLATFORM", "x86_64", "${PLATFORM}", "x86_64").Replace(p)
	at := func(dir string) string {
		return strings.NewReplacer("$ORIGIN", dir, "${ORIGIN}", dir).Replace(p)
	}
	if !strings.Contains(p, "ORIGIN") {
		return p, p, false
	}
	// The directory of the real file: ld.so has no symbolic link in $ORIGIN.
	real := o.host
	if r, err := filepath.EvalSymlinks(o.host); err == nil {
		real = r
	}
	if abs, err := filepath.Abs(real); err == nil {
		real = abs
	}
	return filepath.Clean(at(filepath.Dir(real))), filepath.Clean(at(filepath.Dir(o.guest))), true
}
