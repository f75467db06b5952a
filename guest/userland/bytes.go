package userland

import (
	"archive/tar"
	"compress/gzip"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"golang.org/x/sys/unix"
)

// sum is md5sum, sha1sum, sha256sum and sha512sum.
func sum(c *ctx) int {
	if !c.getopt("bctw", "check=c", "binary=b", "text=t", "status=s", "quiet=q", "warn=w") {
		return 1
	}
	digest := func(name string) (string, error) {
		r, err := c.open(name)
		if err != nil {
			return "", err
		}
		defer r.Close()
		var h hash.Hash
		switch c.name {
		case "md5sum":
			h = md5.New()
		case "sha1sum":
			h = sha1.New()
		case "sha512sum":
			h = sha512.New()
		default:
			h = sha256.New()
		}
		_, err = io.Copy(h, r)
		return hex.EncodeToString(h.Sum(nil)), err
	}
	if !c.has('c') {
		names := c.args
		if len(names) == 0 {
			names = []string{"-"}
		}
		for _, n := range names {
			d, err := digest(n)
			if err != nil {
				c.warn("%s: %s", n, reason(err))
				continue
			}
			mark := " "
			if c.has('b') {
				mark = "*"
			}
			fmt.Fprintf(c.out, "%s %s%s\n", d, mark, n)
		}
		return c.code()
	}
	bad, unread := 0, 0
	c.eachInput(func(_ string, r io.Reader) error {
		return lines(r, func(l []byte, _ bool) bool {
			want, name, ok := strings.Cut(string(l), " ")
			if !ok || len(name) < 2 {
				c.warn("improperly formatted checksum line")
				return true
			}
			name = name[1:]
			got, err := digest(name)
			switch {
			case err != nil:
				unread++
				c.warn("%s: %s", name, reason(err))
				fmt.Fprintf(c.out, "%s: FAILED open or read\n", name)
			case got != strings.ToLower(want):
				bad++
				if !c.has('s') {
					fmt.Fprintf(c.out, "%s: FAILED\n", name)
				}
			case !c.has('q') && !c.has('s'):
				fmt.Fprintf(c.out, "%s: OK\n", name)
			}
			return true
		})
	})
	if bad > 0 && !c.has('s') {
		s, verb := "", "did"
		if bad > 1 {
			s = "s"
		}
		c.warn("WARNING: %d computed checksum%s %s NOT match", bad, s, verb)
	}
	if bad+unread > 0 {
		return 1
	}
	return c.code()
}

func dd(c *ctx) int {
	in, out := "", ""
	bs, ibs, obs := int64(512), int64(0), int64(0)
	count, skip, seek := int64(-1), int64(0), int64(0)
	conv, iflag, oflag, status := map[string]bool{}, map[string]bool{}, map[string]bool{}, ""
	set := func(m map[string]bool, v string) {
		for _, f := range strings.Split(v, ",") {
			m[f] = true
		}
	}
	for _, a := range c.args {
		k, v, ok := strings.Cut(a, "=")
		if !ok {
			return c.fail(1, "unrecognized operand '%s'", a)
		}
		number := func(to *int64, low int64) bool {
			n := int64(1)
			for _, f := range strings.Split(v, "x") {
				k, err := size(f)
				if err != nil || k != 0 && n > (1<<62)/k {
					c.warn("invalid number: '%s'", v)
					return false
				}
				n *= k
			}
			if n < low {
				c.warn("invalid number: '%s'", v)
				return false
			}
			*to = n
			return true
		}
		good := true
		switch k {
		case "if":
			in = v
		case "of":
			out = v
		case "bs":
			good = number(&bs, 1)
			ibs, obs = bs, bs
		case "ibs":
			good = number(&ibs, 1)
		case "obs":
			good = number(&obs, 1)
		case "count":
			good = number(&count, 0)
		case "skip", "iseek":
			good = number(&skip, 0)
		case "seek", "oseek":
			good = number(&seek, 0)
		case "conv":
			set(conv, v)
		case "iflag":
			set(iflag, v)
		case "oflag":
			set(oflag, v)
		case "status":
			status = v
		default:
			return c.fail(1, "unrecognized operand '%s'", a)
		}
		if !good {
			return 1
		}
	}
	if ibs == 0 {
		ibs = 512
	}
	if obs == 0 {
		obs = 512
	}
	// A block lives in memory as a whole; 1 GiB is beyond what a test writes
	// at once and within what its guest has.
	if ibs > 1<<30 || obs > 1<<30 {
		return c.fail(1, "block size larger than 1G")
	}
	flag := func(m map[string]bool) (f int, bad string) {
		for k := range m {
			switch k {
			case "direct":
				f |= unix.O_DIRECT
			case "sync":
				f |= unix.O_SYNC
			case "dsync":
				f |= unix.O_DSYNC
			case "append":
				f |= unix.O_APPEND
			case "nonblock":
				f |= unix.O_NONBLOCK
			case "fullblock", "count_bytes", "skip_bytes", "seek_bytes":
			default:
				return 0, k
			}
		}
		return f, ""
	}
	for k := range conv {
		switch k {
		case "notrunc", "sync", "fsync", "fdatasync", "noerror", "excl", "nocreat", "ucase", "lcase", "swab":
		default:
			return c.fail(1, "invalid conversion: '%s'", k)
		}
	}
	inFlags, bad := flag(iflag)
	outFlags, bad2 := flag(oflag)
	if bad+bad2 != "" {
		return c.fail(1, "invalid flag: '%s'", bad+bad2)
	}
	r, w := os.Stdin, os.Stdout
	var err error
	if in != "" {
		if r, err = os.OpenFile(in, os.O_RDONLY|inFlags, 0); err != nil {
			return c.fail(1, "failed to open '%s': %s", in, reason(err))
		}
		defer r.Close()
	}
	skipBytes, seekBytes := skip*ibs, seek*obs
	if iflag["skip_bytes"] {
		skipBytes = skip
	}
	if oflag["seek_bytes"] {
		seekBytes = seek
	}
	if out != "" {
		mode := os.O_RDWR | outFlags
		if !conv["nocreat"] {
			mode |= os.O_CREATE
		}
		if conv["excl"] {
			mode |= os.O_EXCL
		}
		if !conv["notrunc"] && seekBytes == 0 {
			mode |= os.O_TRUNC
		}
		w, err = os.OpenFile(out, mode, 0o666)
		if errors.Is(err, fs.ErrPermission) {
			w, err = os.OpenFile(out, mode&^os.O_RDWR|os.O_WRONLY, 0o666)
		}
		if err != nil {
			return c.fail(1, "failed to open '%s': %s", out, reason(err))
		}
		defer w.Close()
		if st, err := w.Stat(); err == nil && st.Mode().IsRegular() && !conv["notrunc"] && seekBytes > 0 {
			if err := w.Truncate(seekBytes); err != nil {
				return c.fail(1, "failed to truncate '%s': %s", out, reason(err))
			}
		}
	}
	if seekBytes > 0 {
		if _, err := w.Seek(seekBytes, io.SeekStart); err != nil {
			return c.fail(1, "'%s': cannot seek: %s", out, reason(err))
		}
	}
	if skipBytes > 0 {
		if _, err := r.Seek(skipBytes, io.SeekStart); err != nil {
			if _, err := io.CopyN(io.Discard, r, skipBytes); err != nil && err != io.EOF {
				return c.fail(1, "'%s': cannot skip: %s", in, reason(err))
			}
		}
	}
	d := ddRun{c: c, r: r, w: w, obs: int(obs), began: time.Now(), ibuf: alignedBuffer(int(ibs))}
	// Direct I/O wants aligned memory and whole blocks in one call.
	d.obuf = alignedBuffer(int(obs))[:0]
	sigs := make(chan os.Signal, 1)
	signal.Notify(sigs, unix.SIGINT)
	code := 0
	limit := int64(1<<63 - 1)
	if count >= 0 && iflag["count_bytes"] {
		limit, count = count, -1
	}
loop:
	for n := int64(0); (count < 0 || n < count) && limit > 0; n++ {
		select {
		case <-sigs:
			code = 130
			break loop
		default:
		}
		buf := d.ibuf[:min(int64(len(d.ibuf)), limit)]
		var k int
		if iflag["fullblock"] {
			k, err = io.ReadFull(r, buf)
			if err == io.ErrUnexpectedEOF {
				err = nil
			}
		} else {
			k, err = r.Read(buf)
		}
		if err == io.EOF || err == nil && k == 0 {
			break
		}
		if err != nil {
			c.warn("error reading '%s': %s", in, reason(err))
			code = 1
			if !conv["noerror"] {
				break
			}
			if _, err := r.Seek(int64(len(d.ibuf)), io.SeekCurrent); err != nil {
				break
			}
			if !conv["sync"] {
				continue
			}
			k = 0
		}
		limit -= int64(k)
		if k == len(d.ibuf) {
			d.inFull++
		} else {
			d.inPart++
		}
		if conv["sync"] && k < len(d.ibuf) {
			clear(d.ibuf[k:])
			k = len(d.ibuf)
		}
		b := d.ibuf[:k]
		switch {
		case conv["ucase"]:
			upper(b, 'a', 'z')
		case conv["lcase"]:
			upper(b, 'A', 'Z')
		}
		if conv["swab"] {
			for i := 0; i+1 < len(b); i += 2 {
				b[i], b[i+1] = b[i+1], b[i]
			}
		}
		if err := d.write(b, ibs == obs); err != nil {
			c.warn("error writing '%s': %s", out, reason(err))
			code = 1
			break
		}
	}
	if err := d.flush(); err != nil && code == 0 {
		code = c.fail(1, "error writing '%s': %s", out, reason(err))
	}
	if conv["fsync"] || conv["fdatasync"] {
		if err := w.Sync(); err != nil {
			code = c.fail(1, "fsync failed for '%s': %s", out, reason(err))
		}
	}
	d.report(status)
	return code
}

func upper(b []byte, lo, hi byte) {
	for i, ch := range b {
		if ch >= lo && ch <= hi {
			b[i] = ch ^ 0x20
		}
	}
}

type ddRun struct {
	c                               *ctx
	r, w                            *os.File
	ibuf, obuf                      []byte
	obs                             int
	inFull, inPart, outFull, outPar int64
	bytes                           int64
	began                           time.Time
}

func (d *ddRun) put(b []byte) error {
	n, err := d.w.Write(b)
	d.bytes += int64(n)
	if err == nil {
		if n == d.obs {
			d.outFull++
		} else {
			d.outPar++
		}
	}
	return err
}

// write sends an input block on: as it is when blocks are of one size, else
// collected into output blocks.
func (d *ddRun) write(b []byte, same bool) error {
	if same {
		return d.put(b)
	}
	for len(b) > 0 {
		n := min(len(b), d.obs-len(d.obuf))
		d.obuf = append(d.obuf, b[:n]...)
		b = b[n:]
		if len(d.obuf) == d.obs {
			if err := d.put(d.obuf); err != nil {
				return err
			}
			d.obuf = d.obuf[:0]
		}
	}
	return nil
}

func (d *ddRun) flush() error {
	if len(d.obuf) == 0 {
		return nil
	}
	b := d.obuf
	d.obuf = nil
	return d.put(b)
}

func (d *ddRun) report(status string) {
	if status == "none" {
		return
	}
	d.c.out.Flush()
	fmt.Fprintf(d.c.err, "%d+%d records in\n%d+%d records out\n", d.inFull, d.inPart, d.outFull, d.outPar)
	if status == "noxfer" {
		return
	}
	s := max(time.Since(d.began).Seconds(), 1e-9)
	rate := float64(d.bytes) / s
	unit := "B"
	for _, u := range []string{"kB", "MB", "GB"} {
		if rate >= 1000 {
			rate, unit = rate/1000, u
		}
	}
	extra := ""
	if d.bytes >= 1000 {
		extra = fmt.Sprintf(" (%s)", si(d.bytes))
	}
	fmt.Fprintf(d.c.err, "%d bytes%s copied, %.6g s, %.1f %s/s\n", d.bytes, extra, s, rate, unit)
}

func si(n int64) string {
	f, unit := float64(n), "B"
	for _, u := range []string{"kB", "MB", "GB", "TB"} {
		if f >= 1000 {
			f, unit = f/1000, u
		}
	}
	return strconv.FormatFloat(f, 'g', 2, 64) + " " + unit
}

// alignedBuffer returns n bytes that begin on a page.
func alignedBuffer(n int) []byte {
	b, err := unix.Mmap(-1, 0, max(n, 4096), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return make([]byte, n)
	}
	return b[:n:n]
}

func gzipCmd(c *ctx) int {
	if !c.getopt("cdfklnqrtv123456789", "stdout=c", "decompress=d", "force=f", "keep=k", "test=t", "best=9", "fast=1", "no-name=n") {
		return 1
	}
	decompress := c.has('d') || c.has('t') || c.name != "gzip"
	stdout := c.has('c') || c.name == "zcat"
	level := gzip.DefaultCompression
	for _, o := range c.opts {
		if isDigit(o.name) {
			level = int(o.name - '0')
		}
	}
	pump := func(w io.Writer, r io.Reader) error {
		if decompress {
			z, err := gzip.NewReader(r)
			if err != nil {
				return err
			}
			_, err = io.Copy(w, z)
			return err
		}
		z, err := gzip.NewWriterLevel(w, level)
		if err != nil {
			return err
		}
		if _, err := io.Copy(z, r); err != nil {
			return err
		}
		return z.Close()
	}
	names := c.args
	if len(names) == 0 {
		names = []string{"-"}
	}
	warned := false
	for _, n := range names {
		r, err := c.open(n)
		if err != nil {
			c.warn("%s: %s", n, reason(err))
			continue
		}
		to := n + ".gz"
		if decompress {
			var ok bool
			if to, ok = strings.CutSuffix(n, ".gz"); !ok {
				if to, ok = strings.CutSuffix(n, ".tgz"); ok {
					to += ".tar"
				}
			}
			if !ok && !stdout && n != "-" && !c.has('t') {
				c.warn("%s: unknown suffix -- ignored", n)
				r.Close()
				warned = true
				continue
			}
		}
		switch {
		case c.has('t'):
			err = pump(io.Discard, r)
		case stdout || n == "-":
			err = pump(c.out, r)
		default:
			err = c.gzipFile(r, n, to, pump)
		}
		r.Close()
		if errors.Is(err, fs.ErrExist) {
			c.warn("%s already exists; not overwritten", to)
			warned = true
			continue
		}
		if err != nil {
			c.warn("%s: %s", n, reason(err))
		}
	}
	if warned {
		return 2 // as gzip tells what it left alone from what failed
	}
	return c.code()
}

// gzipFile replaces n by its packed or unpacked copy.
func (c *ctx) gzipFile(r io.Reader, n, to string, pump func(io.Writer, io.Reader) error) error {
	st, err := os.Stat(n)
	if err != nil {
		return err
	}
	mode := os.O_WRONLY | os.O_CREATE | os.O_EXCL
	if c.has('f') {
		mode = os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	}
	f, err := os.OpenFile(to, mode, st.Mode().Perm())
	if err != nil {
		return err
	}
	err = pump(f, r)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		os.Remove(to)
		return err
	}
	os.Chtimes(to, time.Time{}, st.ModTime())
	if !c.has('k') {
		return os.Remove(n)
	}
	return nil
}

func tarCmd(c *ctx) int {
	// "tar xzf file" is the old way to say "tar -xzf file".
	if len(c.args) > 0 && c.args[0] != "" && c.args[0][0] != '-' {
		c.args[0] = "-" + c.args[0]
	}
	if !c.getopt("ctxf:C:zJjvpmOPaS:", "create=c", "list=t", "extract=x", "get=x", "file=f", "directory=C", "gzip=z", "xz=J", "verbose=v",
		"to-stdout=O", "strip-components=S", "numeric-owner=p", "no-same-owner=m", "same-owner=p") {
		return 2
	}
	if c.has('j') {
		return c.fail(2, "bzip2 is not supported")
	}
	archive := c.opt('f', "-")
	if archive != "-" {
		if a, err := filepath.Abs(archive); err == nil {
			archive = a
		}
	}
	dir := c.opt('C', "")
	var err error
	switch {
	case c.has('c'):
		if len(c.args) == 0 {
			return c.fail(2, "cowardly refusing to create an empty archive")
		}
		err = c.tarCreate(archive, dir)
	case c.has('x'), c.has('t'):
		err = c.tarRead(archive, dir)
	default:
		return c.fail(2, "needs one of -c, -t, -x")
	}
	if err != nil {
		return c.fail(2, "%s", reason(err))
	}
	if c.failed {
		return 2
	}
	return 0
}

func (c *ctx) tarCreate(archive, dir string) (err error) {
	var w io.Writer = c.out
	if archive != "-" {
		f, err := os.Create(archive)
		if err != nil {
			return err
		}
		defer func() {
			if cerr := f.Close(); err == nil {
				err = cerr
			}
		}()
		w = f
	}
	if dir != "" {
		if err := os.Chdir(dir); err != nil {
			return err
		}
	}
	switch {
	case c.has('J'):
		z, err := xz.NewWriter(w)
		if err != nil {
			return err
		}
		defer z.Close()
		w = z
	case c.has('z'), c.has('a') && strings.HasSuffix(archive, "gz"):
		z := gzip.NewWriter(w)
		defer z.Close()
		w = z
	}
	t := tar.NewWriter(w)
	defer t.Close()
	links := map[[2]uint64]string{}
	for _, root := range c.args {
		filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
			if err == nil {
				err = c.tarAdd(t, p, d, links)
			}
			if err != nil {
				c.warn("%s: %s", p, reason(err))
			}
			return nil
		})
	}
	return nil
}

func (c *ctx) tarAdd(t *tar.Writer, p string, d fs.DirEntry, links map[[2]uint64]string) error {
	st, err := d.Info()
	if err != nil {
		return err
	}
	to := ""
	if st.Mode()&fs.ModeSymlink != 0 {
		if to, err = os.Readlink(p); err != nil {
			return err
		}
	}
	if st.Mode()&fs.ModeSocket != 0 {
		return nil // there is no such entry in an archive
	}
	h, err := tar.FileInfoHeader(st, to)
	if err != nil {
		return err
	}
	name := strings.TrimLeft(p, "/")
	if c.has('P') {
		name = p
	}
	if h.Name = name; st.IsDir() {
		h.Name = strings.TrimSuffix(name, "/") + "/"
	}
	if h.Name == "/" {
		return nil
	}
	sys := st.Sys().(*statT)
	if id := [2]uint64{uint64(sys.Dev), sys.Ino}; st.Mode().IsRegular() && sys.Nlink > 1 {
		if first, ok := links[id]; ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
		} else {
			links[id] = h.Name
		}
	}
	if c.has('v') {
		if c.opt('f', "-") == "-" {
			fmt.Fprintln(c.err, h.Name)
		} else {
			fmt.Fprintln(c.out, h.Name)
		}
	}
	if err := t.WriteHeader(h); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeReg {
		return nil
	}
	f, err := os.Open(p)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.CopyN(t, f, h.Size)
	return err
}

// unpacked looks at the first bytes of r and unpacks what is packed.
func unpacked(r io.Reader) (io.Reader, error) {
	head := make([]byte, 6)
	n, err := io.ReadFull(r, head)
	if err != nil && err != io.ErrUnexpectedEOF && err != io.EOF {
		return nil, err
	}
	all := io.MultiReader(strings.NewReader(string(head[:n])), r)
	switch s := string(head[:n]); {
	case strings.HasPrefix(s, "\x1f\x8b"):
		return gzip.NewReader(all)
	case strings.HasPrefix(s, "\xfd7zXZ\x00"):
		return xz.NewReader(all)
	case strings.HasPrefix(s, "\x28\xb5\x2f\xfd"):
		return zstd.NewReader(all, zstd.WithDecoderConcurrency(1))
	}
	return all, nil
}

func (c *ctx) tarRead(archive, dir string) error {
	r, err := c.open(archive)
	if err != nil {
		return err
	}
	defer r.Close()
	u, err := unpacked(r)
	if err != nil {
		return err
	}
	if dir == "" {
		dir = "."
	}
	// Everything happens below the directory, whatever names and links the
	// archive has.
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	strip, _ := strconv.Atoi(c.opt('S', "0"))
	want := map[string]bool{}
	for _, a := range c.args {
		want[strings.TrimSuffix(a, "/")] = true
	}
	type dirTime struct {
		name string
		h    *tar.Header
	}
	var dirs []dirTime
	t := tar.NewReader(u)
	for {
		h, err := t.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if len(want) > 0 && !wanted(want, h.Name) {
			continue
		}
		if c.has('t') {
			c.tarList(h)
			continue
		}
		name := filepath.Clean(strings.TrimLeft(h.Name, "/"))
		parts := strings.Split(name, "/")
		if len(parts) <= strip {
			continue
		}
		name = strings.Join(parts[strip:], "/")
		if c.has('v') {
			fmt.Fprintln(c.out, h.Name)
		}
		if c.has('O') {
			if h.Typeflag == tar.TypeReg {
				if _, err := io.Copy(c.out, t); err != nil {
					return err
				}
			}
			continue
		}
		if name == "." {
			continue
		}
		if err := c.tarExtract(root, name, h, t); err != nil {
			c.warn("%s: %s", h.Name, reason(err))
		} else if h.Typeflag == tar.TypeDir {
			dirs = append(dirs, dirTime{name, h})
		}
	}
	// Times of directories come last, as what was made in them changed them.
	for i := len(dirs) - 1; i >= 0; i-- {
		root.Chmod(dirs[i].name, fs.FileMode(dirs[i].h.Mode).Perm())
		root.Chtimes(dirs[i].name, dirs[i].h.ModTime, dirs[i].h.ModTime)
	}
	return nil
}

func wanted(want map[string]bool, name string) bool {
	for name = strings.TrimSuffix(name, "/"); ; {
		if want[name] {
			return true
		}
		i := strings.LastIndexByte(name, '/')
		if i < 0 {
			return false
		}
		name = name[:i]
	}
}

func (c *ctx) tarExtract(root *os.Root, name string, h *tar.Header, r io.Reader) error {
	if d := filepath.Dir(name); d != "." {
		if err := root.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	perm := fs.FileMode(h.Mode).Perm()
	if h.Typeflag != tar.TypeDir {
		root.Remove(name)
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if err := root.Mkdir(name, perm|0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	case tar.TypeReg:
		f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, perm)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, r)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return err
		}
	case tar.TypeSymlink:
		return root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		return root.Link(filepath.Clean(strings.TrimLeft(h.Linkname, "/")), name)
	case tar.TypeFifo, tar.TypeChar, tar.TypeBlock:
		kind := map[byte]uint32{tar.TypeFifo: unix.S_IFIFO, tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK}[h.Typeflag]
		parent, err := root.Open(filepath.Dir(name))
		if err != nil {
			return err
		}
		defer parent.Close()
		return unix.Mknodat(int(parent.Fd()), filepath.Base(name), kind|uint32(perm), int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))))
	default:
		return fmt.Errorf("unknown entry type '%c'", h.Typeflag)
	}
	if os.Geteuid() == 0 && !c.has('m') {
		root.Lchown(name, h.Uid, h.Gid)
	}
	if h.Typeflag == tar.TypeReg {
		root.Chmod(name, perm)
		return root.Chtimes(name, h.ModTime, h.ModTime)
	}
	return nil
}

func (c *ctx) tarList(h *tar.Header) {
	if !c.has('v') {
		fmt.Fprintln(c.out, h.Name)
		return
	}
	owner := h.Uname + "/" + h.Gname
	if h.Uname == "" {
		owner = fmt.Sprintf("%d/%d", h.Uid, h.Gid)
	}
	to := ""
	switch h.Typeflag {
	case tar.TypeSymlink:
		to = " -> " + h.Linkname
	case tar.TypeLink:
		to = " link to " + h.Linkname
	}
	kinds := map[byte]uint32{tar.TypeDir: unix.S_IFDIR, tar.TypeSymlink: unix.S_IFLNK, tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO}
	kind, ok := kinds[h.Typeflag]
	if !ok {
		kind = unix.S_IFREG
	}
	fmt.Fprintf(c.out, "%s %s %*d %s %s%s\n", modeString(kind|uint32(h.Mode)&0o7777), owner, max(0, 18-len(owner)), h.Size, h.ModTime.Format("2006-01-02 15:04"), h.Name, to)
}

func hexdump(c *ctx) int {
	if !c.getopt("Cvn:s:x", "canonical=C", "no-squeezing=v", "length=n", "skip=s") {
		return 1
	}
	limit, skip := int64(1<<63-1), int64(0)
	for opt, to := range map[byte]*int64{'n': &limit, 's': &skip} {
		if c.has(opt) {
			n, err := strconv.ParseInt(c.opt(opt, ""), 0, 64)
			if err != nil || n < 0 {
				return c.fail(1, "invalid number '%s'", c.opt(opt, ""))
			}
			*to = n
		}
	}
	names := c.args
	if len(names) == 0 {
		names = []string{"-"}
	}
	var rs []io.Reader
	for _, n := range names {
		r, err := c.open(n)
		if err != nil {
			c.warn("%s: %s", n, reason(err))
			continue
		}
		defer r.Close()
		rs = append(rs, r)
	}
	r := io.MultiReader(rs...)
	if _, err := io.CopyN(io.Discard, r, skip); err != nil && err != io.EOF {
		return c.fail(1, "%s", reason(err))
	}
	r = io.LimitReader(r, limit)
	at := skip
	var prev [16]byte
	var buf [16]byte
	same := false
	off := func() {
		if c.has('C') {
			fmt.Fprintf(c.out, "%08x", at)
		} else {
			fmt.Fprintf(c.out, "%07x", at)
		}
	}
	for {
		clear(buf[:])
		n, err := io.ReadFull(r, buf[:])
		if n == 0 {
			if at > skip {
				off()
				c.out.WriteByte('\n')
			}
			if err != io.EOF {
				return c.fail(1, "%s", reason(err))
			}
			return c.code()
		}
		if n == 16 && at > skip && buf == prev && !c.has('v') {
			if !same {
				c.out.WriteString("*\n")
			}
			same = true
			at += 16
			continue
		}
		prev, same = buf, false
		off()
		if c.has('C') {
			c.out.WriteByte(' ')
			for i := range 16 {
				if i == 8 {
					c.out.WriteByte(' ')
				}
				if i < n {
					fmt.Fprintf(c.out, " %02x", buf[i])
				} else {
					c.out.WriteString("   ")
				}
			}
			c.out.WriteString("  |")
			for _, b := range buf[:n] {
				if b < 32 || b > 126 {
					b = '.'
				}
				c.out.WriteByte(b)
			}
			c.out.WriteByte('|')
		} else {
			for i := 0; i < 16; i += 2 {
				switch {
				case i < n && c.has('x'):
					fmt.Fprintf(c.out, "    %04x", uint16(buf[i])|uint16(buf[i+1])<<8)
				case i < n:
					fmt.Fprintf(c.out, " %04x", uint16(buf[i])|uint16(buf[i+1])<<8)
				case c.has('x'):
					c.out.WriteString("        ")
				default:
					c.out.WriteString("     ")
				}
			}
		}
		c.out.WriteByte('\n')
		at += int64(n)
	}
}
