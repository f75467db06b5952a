package userland

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/u-root/u-root/pkg/core/base64"
)

func yes(c *ctx) int {
	text := "y"
	if len(c.args) > 0 {
		text = strings.Join(c.args, " ")
	}
	block := []byte(strings.Repeat(text+"\n", 1+8192/(len(text)+1)))
	for {
		if _, err := os.Stdout.Write(block); err != nil {
			return 1
		}
	}
}

func seq(c *ctx) int {
	// Options end at the first number, which may be negative.
	var sep, format = "\n", ""
	pad := false
	args := c.args
	for len(args) > 0 && len(args[0]) > 1 && args[0][0] == '-' && !strings.ContainsAny(args[0][1:2], "0123456789.") {
		a := args[0]
		args = args[1:]
		if a == "--" {
			break
		}
		switch {
		case a == "-w" || a == "--equal-width":
			pad = true
		case (a == "-s" || a == "-f") && len(args) > 0:
			if a == "-s" {
				sep = args[0]
			} else {
				format = args[0]
			}
			args = args[1:]
		case strings.HasPrefix(a, "-s"):
			sep = a[2:]
		case strings.HasPrefix(a, "-f"):
			format = a[2:]
		case strings.HasPrefix(a, "--separator="):
			sep = a[len("--separator="):]
		default:
			return c.fail(1, "invalid option '%s'", a)
		}
	}
	if len(args) < 1 || len(args) > 3 {
		return c.fail(1, "needs one to three numbers")
	}
	first, step, last := "1", "1", args[len(args)-1]
	if len(args) > 1 {
		first = args[0]
	}
	if len(args) > 2 {
		step = args[1]
	}
	var v [3]float64
	prec := 0
	for i, s := range []string{first, step, last} {
		f, err := strconv.ParseFloat(s, 64)
		if err != nil {
			return c.fail(1, "invalid floating point argument: '%s'", s)
		}
		v[i] = f
		if _, frac, ok := strings.Cut(s, "."); ok && i < 2 {
			prec = max(prec, len(frac))
		}
	}
	if v[1] == 0 {
		return c.fail(1, "invalid Zero increment value: '%s'", step)
	}
	width := 0
	if pad {
		lp := prec
		width = max(len(strconv.FormatFloat(v[0], 'f', lp, 64)), len(strconv.FormatFloat(v[2], 'f', lp, 64)))
	}
	for i := 0; ; i++ {
		x := v[0] + float64(i)*v[1]
		// Half of the last place forgives what binary fractions lose.
		slack := v[1] * 1e-9
		if v[1] > 0 && x > v[2]+slack || v[1] < 0 && x < v[2]+slack {
			if i > 0 {
				c.out.WriteByte('\n')
			}
			return 0
		}
		if i > 0 {
			c.out.WriteString(sep)
		}
		if format != "" {
			fmt.Fprintf(c.out, format, x)
		} else {
			if _, err := fmt.Fprintf(c.out, "%0*.*f", width, prec, x); err != nil {
				return 1
			}
		}
	}
}

func base64Cmd(c *ctx) int {
	c.out.Flush()
	// u-root's command knows -d; GNU's long name and line wrap option come on
	// top, of which only "do not wrap" is what scripts ask for.
	var args []string
	wrap := 76
	for i := 0; i < len(c.args); i++ {
		switch a := c.args[i]; {
		case a == "--decode":
			args = append(args, "-d")
		case a == "-w" && i+1 < len(c.args):
			i++
			wrap, _ = strconv.Atoi(c.args[i])
		case strings.HasPrefix(a, "-w"):
			wrap, _ = strconv.Atoi(a[2:])
		case strings.HasPrefix(a, "--wrap="):
			wrap, _ = strconv.Atoi(a[len("--wrap="):])
		default:
			args = append(args, a)
		}
	}
	decode := slices.Contains(args, "-d")
	var out bytes.Buffer
	cmd := base64.New()
	cmd.SetIO(c.in, &out, c.err)
	if err := cmd.RunContext(context.Background(), args...); err != nil {
		c.out.Write(out.Bytes())
		return c.fail(1, "%s", reason(err))
	}
	if decode {
		c.out.Write(out.Bytes())
		return 0
	}
	b := bytes.TrimRight(out.Bytes(), "\n")
	if wrap <= 0 {
		c.out.Write(b)
		return 0
	}
	for len(b) > 0 {
		k := min(wrap, len(b))
		c.out.Write(b[:k])
		c.out.WriteByte('\n')
		b = b[k:]
	}
	return 0
}
