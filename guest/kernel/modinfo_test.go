package kernel

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"testing"
)

func TestModinfo(t *testing.T) {
	b, err := modinfo(ko("license=GPL", "alias=fs-foo", "alias=pci:v00001234d*", "alias=vmbus:0123", "depends=a-b,c", "softdep=pre: x y-z post: w", "softdep=pre: v", "intree=Y"))
	if err != nil {
		t.Fatal(err)
	}
	m := parseModinfo(b)
	for _, c := range []struct {
		name      string
		got, want []string
	}{
		{"deps", m.Deps, []string{"a_b", "c"}},
		{"pre", m.Pre, []string{"x", "y-z", "v"}},
		{"post", m.Post, []string{"w"}},
		{"aliases", m.Aliases, []string{"fs-foo", "vmbus:0123"}},
	} {
		if !slices.Equal(c.got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, c.got, c.want)
		}
	}
}

func TestModinfo_Refused(t *testing.T) {
	le := binary.LittleEndian
	damage := func(f func(b []byte)) []byte {
		b := ko("license=GPL")
		f(b)
		return b
	}
	shoff := int(le.Uint64(ko("license=GPL")[40:]))
	for name, b := range map[string][]byte{
		"empty":                nil,
		"short":                ko()[:63],
		"text":                 []byte(strings.Repeat("not ELF ", 20)),
		"32 bit":               damage(func(b []byte) { b[4] = 1 }),
		"big endian":           damage(func(b []byte) { b[5] = 2 }),
		"executable":           damage(func(b []byte) { le.PutUint16(b[16:], 2) }),
		"other machine":        damage(func(b []byte) { le.PutUint16(b[18:], 183) }),
		"headers past the end": damage(func(b []byte) { le.PutUint64(b[40:], uint64(len(b))-100) }),
		"headers wrap":         damage(func(b []byte) { le.PutUint64(b[40:], 1<<64-64) }),
		"no sections":          damage(func(b []byte) { le.PutUint16(b[60:], 0) }),
		"string table index":   damage(func(b []byte) { le.PutUint16(b[62:], 3) }),
		"header size":          damage(func(b []byte) { le.PutUint16(b[58:], 40) }),
		"body past the end":    damage(func(b []byte) { le.PutUint64(b[shoff+64+32:], uint64(len(b))) }),
		"body wraps":           damage(func(b []byte) { le.PutUint64(b[shoff+64+24:], 1<<64-1) }),
		"names past the end":   damage(func(b []byte) { le.PutUint64(b[shoff+128+24:], 1<<40) }),
		"no modinfo":           damage(func(b []byte) { le.PutUint32(b[shoff+64:], 10) }),
		"name offset":          damage(func(b []byte) { le.PutUint32(b[shoff+64:], 1<<32-1) }),
	} {
		if got, err := modinfo(b); err == nil {
			t.Errorf("%s: accepted, %q", name, got)
		}
	}
}

func FuzzModinfo(f *testing.F) {
	f.Add(ko("license=GPL", "depends=a,b", "softdep=pre: c post: d", "alias=e"))
	f.Add(ko())
	f.Add([]byte("\x7fELF\x02\x01\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		info, err := modinfo(b)
		if err != nil {
			return
		}
		if !bytes.Contains(b, info) {
			t.Error("a section that is not in the file")
		}
		m := parseModinfo(info)
		for _, d := range m.Deps {
			if d == "" || strings.ContainsAny(d, "-,\x00") {
				t.Errorf("dependency %q", d)
			}
		}
	})
}
