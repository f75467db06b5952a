package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"testing"
)

// Files that are given to hvpost in the tests of its command line.

// elfKernel is a 64-bit ELF of one segment at 16 MiB, which says that it is
// Linux 6.99.0-test. Entered, it executes code.
func elfKernel(machine uint16, memory uint64, code ...byte) []byte {
	le := binary.LittleEndian
	const headers = 64 + 56
	text := []byte("Linux version 6.99.0-test (a@b) #1\x00")
	b := make([]byte, headers)
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], 2) // executable
	le.PutUint16(b[18:], machine)
	le.PutUint32(b[20:], 1)
	le.PutUint64(b[24:], 16<<20+uint64(len(text)))   // entry
	text = append(append(text, code...), 0x0F, 0x0B) // ud2: a triple fault
	le.PutUint64(b[32:], 64)                         // program headers
	le.PutUint16(b[52:], 64)
	le.PutUint16(b[54:], 56)
	le.PutUint16(b[56:], 1)
	p := b[64:]
	le.PutUint32(p, 1) // PT_LOAD
	le.PutUint32(p[4:], 5)
	le.PutUint64(p[8:], headers)
	le.PutUint64(p[16:], 16<<20)
	le.PutUint64(p[24:], 16<<20)
	le.PutUint64(p[32:], uint64(len(text)))
	le.PutUint64(p[40:], memory)
	return append(b, text...)
}

const elfX86, elfARM64 = 62, 183

// bzImageHead is the start of a bzImage of protocol 2.15 whose compressed
// kernel of payload bytes would follow.
func bzImageHead(payload uint32) []byte {
	le := binary.LittleEndian
	b := make([]byte, 2*512)
	b[0x1F1] = 1 // one sector of setup code after the first
	le.PutUint16(b[0x1FE:], 0xAA55)
	b[0x200], b[0x201] = 0xEB, 0x66
	copy(b[0x202:], "HdrS")
	le.PutUint16(b[0x206:], 0x020F)
	b[0x211] = 1 // loaded high
	le.PutUint32(b[0x230:], 2<<20)
	b[0x234] = 1
	le.PutUint16(b[0x236:], 1)
	le.PutUint32(b[0x238:], 2047)
	le.PutUint32(b[0x248:], 0)
	le.PutUint32(b[0x24C:], payload)
	le.PutUint64(b[0x258:], 16<<20)
	le.PutUint32(b[0x260:], 32<<20)
	return b
}

// deb is a Debian package with the files.
func deb(t *testing.T, files map[string]string) []byte {
	t.Helper()
	tgz := func(files map[string]string) []byte {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		w := tar.NewWriter(z)
		for name, text := range files {
			if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text))}); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write([]byte(text)); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(w.Close(), z.Close()); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	b := []byte("!<arch>\n")
	for _, m := range []struct {
		name string
		body []byte
	}{
		{"debian-binary", []byte("2.0\n")},
		{"control.tar.gz", tgz(map[string]string{"./control": "Package: linux-image-x\nVersion: 1\nArchitecture: amd64\n"})},
		{"data.tar.gz", tgz(files)},
	} {
		b = fmt.Appendf(b, "%-16s%-12d%-6d%-6d%-8s%-10d`\n", m.name, 0, 0, 0, "100644", len(m.body))
		b = append(b, m.body...)
		if len(m.body)%2 != 0 {
			b = append(b, '\n')
		}
	}
	return b
}

// sparse makes a file that is large and takes no space.
func (p *cliPlace) sparse(t *testing.T, name string, size int64) string {
	t.Helper()
	path := p.file(t, name, nil)
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

// modules makes a kernel directory with the modules directory of it.
func (p *cliPlace) modules(t *testing.T, name, dep string, files map[string]string) string {
	t.Helper()
	p.file(t, name+"/vmlinux", elfKernel(elfX86, 4096))
	p.file(t, name+"/.config", []byte("CONFIG_MODULES=y\n"))
	p.file(t, name+"/lib/modules/6.99.0-test/modules.dep", []byte(dep))
	p.file(t, name+"/modules.dep", []byte(dep)) // as in a build tree
	for f, text := range files {
		p.file(t, name+"/lib/modules/6.99.0-test/"+f, []byte(text))
		p.file(t, name+"/"+f, []byte(text))
	}
	return p.path(name)
}
