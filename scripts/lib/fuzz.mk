# Builds every fuzz target, OUT/bin/NAME for native/**/NAME_fuzz.cc, from the project's root. Called by
# scripts/fuzz with OUT, FUZZER (clang or gcc) and CXX. The sanitizers are always on.
SOURCES := $(shell find native/base native/io native/store native/volume native/nbd native/netlink \
  native/testing \
  -name '*.cc' -not -name '*_test.cc' -not -name '*_fuzz.cc' -not -name 'fuzz_driver.cc' \
  -not -path native/testing/main.cc)
TARGETS := $(shell find native -name '*_fuzz.cc')
SANITIZE := address,undefined
FLAGS := -std=c++20 -fno-exceptions -fno-rtti -O1 -g -fno-omit-frame-pointer -pthread -fPIC -MMD -MP \
  -Inative -D_FILE_OFFSET_BITS=64 -D_GNU_SOURCE -fno-sanitize-recover=all

ifeq ($(FUZZER),clang)
  COMPILE := -fsanitize=$(SANITIZE),fuzzer-no-link
  LINK := -fsanitize=$(SANITIZE),fuzzer
  DRIVER :=
else
  COMPILE := -fsanitize=$(SANITIZE)
  LINK := -fsanitize=$(SANITIZE)
  DRIVER := $(OUT)/native/testing/fuzz_driver.o
endif

OBJECTS := $(SOURCES:%.cc=$(OUT)/%.o)
BINARIES := $(foreach target,$(TARGETS),$(OUT)/bin/$(patsubst %_fuzz.cc,%,$(notdir $(target))))

.PHONY: all
.SECONDARY:
all: $(BINARIES)

define binary
$(OUT)/bin/$(patsubst %_fuzz.cc,%,$(notdir $(1))): $(OUT)/$(1:.cc=.o) $(OUT)/core.a $(DRIVER)
	@mkdir -p $$(@D)
	$(CXX) -pthread $(LINK) -o $$@ $$^
endef
$(foreach target,$(TARGETS),$(eval $(call binary,$(target))))

$(OUT)/core.a: $(OBJECTS)
	@rm -f $@
	$(AR) crs $@ $^

$(OUT)/%.o: %.cc
	@mkdir -p $(@D)
	$(CXX) $(FLAGS) $(COMPILE) -c -o $@ $<

-include $(OBJECTS:.o=.d) $(TARGETS:%.cc=$(OUT)/%.d)
