package userland

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

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
