package userland

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// expr evaluates its arguments, expr(1).
func expr(c *ctx) int {
	args := c.args
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if len(args) == 0 {
		return c.fail(2, "missing operand")
	}
	e := exprParser{toks: args}
	v, err := e.binary(0)
	if err == nil && len(e.toks) > 0 {
		err = fmt.Errorf("syntax error: unexpected argument '%s'", e.toks[0])
	}
	if err != nil {
		return c.fail(2, "%v", err)
	}
	fmt.Fprintln(c.out, v)
	if exprFalse(v) {
		return 1
	}
	return 0
}

func exprFalse(v string) bool {
	return v == "" || strings.Trim(v, "0") == "" || strings.Trim(v, "0") == "-"
}

type exprParser struct{ toks []string }

// exprLevels are the operators from the loosest to the tightest.
var exprLevels = [][]string{{"|"}, {"&"}, {"<", "<=", "=", "==", "!=", ">=", ">"}, {"+", "-"}, {"*", "/", "%"}, {":"}}

func (e *exprParser) binary(level int) (string, error) {
	if level == len(exprLevels) {
		return e.primary()
	}
	l, err := e.binary(level + 1)
	for err == nil && len(e.toks) > 0 {
		op := ""
		for _, o := range exprLevels[level] {
			if e.toks[0] == o {
				op = o
			}
		}
		if op == "" {
			break
		}
		e.toks = e.toks[1:]
		var r string
		if r, err = e.binary(level + 1); err == nil {
			l, err = exprApply(op, l, r)
		}
	}
	return l, err
}

func (e *exprParser) primary() (string, error) {
	if len(e.toks) == 0 {
		return "", errors.New("syntax error: missing argument")
	}
	t := e.toks[0]
	e.toks = e.toks[1:]
	take := func() (string, error) { return e.primary() }
	switch t {
	case "(":
		v, err := e.binary(0)
		if err == nil && (len(e.toks) == 0 || e.toks[0] != ")") {
			err = errors.New("syntax error: expecting ')'")
		}
		if err == nil {
			e.toks = e.toks[1:]
		}
		return v, err
	case "length":
		s, err := take()
		return strconv.Itoa(len(s)), err
	case "match":
		s, err := take()
		if err != nil {
			return "", err
		}
		r, err := take()
		if err != nil {
			return "", err
		}
		return exprApply(":", s, r)
	case "substr":
		s, err := take()
		if err != nil {
			return "", err
		}
		from, err1 := take()
		n, err2 := take()
		a, err3 := strconv.Atoi(from)
		k, err4 := strconv.Atoi(n)
		if err := errors.Join(err1, err2); err != nil {
			return "", err
		}
		if err3 != nil || err4 != nil || a < 1 || k < 1 || a > len(s) {
			return "", nil
		}
		return s[a-1 : min(len(s), a-1+k)], nil
	case "index":
		s, err := take()
		if err != nil {
			return "", err
		}
		set, err := take()
		return strconv.Itoa(strings.IndexAny(s, set) + 1), err
	}
	return t, nil
}

func exprApply(op, l, r string) (string, error) {
	a, err1 := strconv.ParseInt(l, 10, 64)
	b, err2 := strconv.ParseInt(r, 10, 64)
	numbers := err1 == nil && err2 == nil
	truth := func(t bool) (string, error) {
		if t {
			return "1", nil
		}
		return "0", nil
	}
	switch op {
	case "|":
		if !exprFalse(l) {
			return l, nil
		}
		if exprFalse(r) {
			return "0", nil
		}
		return r, nil
	case "&":
		if exprFalse(l) || exprFalse(r) {
			return "0", nil
		}
		return l, nil
	case "<", "<=", "=", "==", "!=", ">=", ">":
		d := strings.Compare(l, r)
		if numbers {
			switch d = 0; {
			case a < b:
				d = -1
			case a > b:
				d = 1
			}
		}
		switch op {
		case "<":
			return truth(d < 0)
		case "<=":
			return truth(d <= 0)
		case ">":
			return truth(d > 0)
		case ">=":
			return truth(d >= 0)
		case "!=":
			return truth(d != 0)
		}
		return truth(d == 0)
	case ":":
		re, err := regexp.Compile("^(?:" + breToGo(r) + ")")
		if err != nil {
			return "", fmt.Errorf("invalid regular expression: %v", err)
		}
		re.Longest()
		m := re.FindStringSubmatch(l)
		switch {
		case re.NumSubexp() > 0 && m == nil:
			return "", nil
		case re.NumSubexp() > 0:
			return m[1], nil
		case m == nil:
			return "0", nil
		}
		return strconv.Itoa(len(m[0])), nil
	}
	if !numbers {
		return "", errors.New("non-integer argument")
	}
	switch op {
	case "+":
		a += b
	case "-":
		a -= b
	case "*":
		a *= b
	default:
		if b == 0 {
			return "", errors.New("division by zero")
		}
		if op == "/" {
			a /= b
		} else {
			a %= b
		}
	}
	return strconv.FormatInt(a, 10), nil
}
