// Messages go to the logger TensorRT hands over, else to the host's callback, else (warnings and errors) to stderr.
#pragma once

#include <NvInferRuntime.h>

#include <exception>
#include <string>

// RTX counts its own versions from 1; the full TensorRT has IPluginV3 since 10.
#if NV_TENSORRT_MAJOR > 1 && NV_TENSORRT_MAJOR < 10
#error "TensorRT 10 or newer, or TensorRT for RTX, is needed"
#endif

namespace mtmamba {

using LogCallback = void (*)(int32_t severity, char const* message);

void setLoggerFinder(nvinfer1::ILoggerFinder* finder) noexcept;
void setLogCallback(LogCallback callback) noexcept;

// One message. Never throws: a message that cannot be delivered is dropped.
void log(nvinfer1::ILogger::Severity severity, char const* message) noexcept;
void logError(std::string const& message) noexcept;

// Runs `body`; where it throws, logs `what` with the exception's text and returns `failure`.
template <typename Result, typename Body> Result guarded(char const* what, Result failure, Body&& body) noexcept {
    try {
        return body();
    } catch (std::exception const& error) {
        log(nvinfer1::ILogger::Severity::kERROR, what);
        log(nvinfer1::ILogger::Severity::kERROR, error.what());
    } catch (...) {
        log(nvinfer1::ILogger::Severity::kERROR, what);
    }
    return failure;
}

} // namespace mtmamba
