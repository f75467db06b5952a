package userland

import (
	"regexp"

	"mvdan.cc/sh/v3/pattern"
)

// globRegexp compiles a shell pattern that matches a whole string.
func globRegexp(pat string, fold bool) (*regexp.Regexp, error) {
	mode := pattern.EntireString
	if fold {
		mode |= pattern.NoGlobCase
	}
	s, err := pattern.Regexp(pat, mode)
	if err != nil {
		return nil, err
	}
	return regexp.Compile(s)
}
