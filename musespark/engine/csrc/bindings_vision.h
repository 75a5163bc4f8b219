// What Python says about an image tower (`native_tower` in musespark/engine/native_vision.py), as the core reads it.
#pragma once

#include <nanobind/nanobind.h>

#include "vision_config.h"

namespace musespark {

VisionConfig vision_config(const nanobind::dict& d);

}  // namespace musespark
