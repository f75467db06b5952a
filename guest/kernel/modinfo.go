package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// Bounds on a module file. The largest in a Debian kernel (with its symbols,
// without debug information) is about 10 MB; debug builds reach 200 MB.
const (
	maxModuleBytes  = 512 << 20
	maxModinfoBytes = 4 << 20
	maxSections     = 65536 // e_shnum has 16 bits
)

var errNotModule = errors.New("not a kernel module for x86-64")

// modinfo returns the .modinfo section of a module: "key=value" strings, each
// ended by NUL (MODULE_INFO in include/linux/moduleparam.h). It reads the few
// fields of the ELF headers that lead there, each checked against the file.
func modinfo(ko []byte) ([]byte, error) {
	const ehsize, shsize = 64, 64
	le := binary.LittleEndian
	// Class 64, little endian, version 1, then type REL for x86-64.
	if len(ko) < ehsize || string(ko[:7]) != "\x7fELF\x02\x01\x01" || le.Uint16(ko[16:]) != 1 || le.Uint16(ko[18:]) != 62 {
		return nil, errNotModule
	}
	shoff := le.Uint64(ko[40:])
	shnum, shstrndx := int(le.Uint16(ko[60:])), int(le.Uint16(ko[62:]))
	if le.Uint16(ko[58:]) != shsize || shoff > uint64(len(ko)) || uint64(shnum)*shsize > uint64(len(ko))-shoff || shstrndx >= shnum || shnum > maxSections {
		return nil, fmt.Errorf("%w: section headers lie outside the file", errNotModule)
	}
	header := func(i int) []byte { return ko[shoff+uint64(i)*shsize:][:shsize] }
	body := func(h []byte) ([]byte, error) {
		off, size := le.Uint64(h[24:]), le.Uint64(h[32:])
		if off > uint64(len(ko)) || size > uint64(len(ko))-off {
			return nil, fmt.Errorf("%w: a section lies outside the file", errNotModule)
		}
		return ko[off:][:size], nil
	}
	names, err := body(header(shstrndx))
	if err != nil {
		return nil, err
	}
	for i := range shnum {
		h := header(i)
		at := uint64(le.Uint32(h))
		if at >= uint64(len(names)) || !bytes.HasPrefix(names[at:], []byte(".modinfo\x00")) {
			continue
		}
		b, err := body(h)
		if err == nil && len(b) > maxModinfoBytes {
			err = fmt.Errorf(".modinfo of %d bytes: %w", len(b), errTooBig)
		}
		return b, err
	}
	return nil, fmt.Errorf("%w: no .modinfo section", errNotModule)
}

// moduleInfo is what loading a module takes besides its file.
type moduleInfo struct {
	Deps      []string `json:",omitempty"` // modules it needs symbols of
	Pre, Post []string `json:",omitempty"` // MODULE_SOFTDEP: wanted before, after
	Aliases   []string `json:",omitempty"` // other names, without those of buses
}

// parseModinfo takes the fields we use from a .modinfo section.
func parseModinfo(b []byte) moduleInfo {
	var m moduleInfo
	for len(b) > 0 {
		var s []byte
		s, b, _ = bytes.Cut(b, []byte{0})
		key, value, ok := strings.Cut(string(s), "=")
		if !ok {
			continue
		}
		switch key {
		case "depends":
			for _, d := range strings.Split(value, ",") {
				if d != "" {
					m.Deps = append(m.Deps, canonical(d))
				}
			}
		case "softdep":
			m.addSoftdep(value)
		case "alias":
			if plainAlias(value) {
				m.Aliases = append(m.Aliases, value)
			}
		}
	}
	return m
}

// addSoftdep parses "pre: a b post: c". Words before the first keyword have no
// meaning.
func (m *moduleInfo) addSoftdep(s string) {
	var to *[]string
	for _, w := range strings.Fields(s) {
		switch w {
		case "pre:":
			to = &m.Pre
		case "post:":
			to = &m.Post
		default:
			if to != nil {
				*to = append(*to, w)
			}
		}
	}
}

// plainAlias reports whether an alias can be asked for by name: "fs-ext4" or
// "crc32c", not the match patterns of buses ("pci:v*..."). Those of VMBus
// are kept, so that a driver can be found by the class of a device.
func plainAlias(a string) bool {
	return !strings.ContainsRune(a, ':') || strings.HasPrefix(a, "vmbus:")
}

// canonical returns a module's name with the dashes of file names as the
// kernel spells them.
func canonical(name string) string { return strings.ReplaceAll(name, "-", "_") }
