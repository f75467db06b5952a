package userland

import (
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"strings"
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
