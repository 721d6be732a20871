#include "common/log.h"

#include <atomic>
#include <cstdio>

namespace mtmamba {
namespace {
std::atomic<nvinfer1::ILoggerFinder*> loggerFinder{nullptr};
std::atomic<LogCallback> logCallback{nullptr};
} // namespace

void setLoggerFinder(nvinfer1::ILoggerFinder* finder) noexcept { loggerFinder = finder; }

void setLogCallback(LogCallback callback) noexcept { logCallback = callback; }

void log(nvinfer1::ILogger::Severity severity, char const* message) noexcept {
    try {
        nvinfer1::ILoggerFinder* const finder = loggerFinder;
        nvinfer1::ILogger* const logger = finder ? finder->findLogger() : nullptr;
        if (logger) {
            logger->log(severity, message);
        } else if (LogCallback const callback = logCallback) {
            callback(static_cast<int32_t>(severity), message);
        } else if (severity <= nvinfer1::ILogger::Severity::kWARNING) {
            std::fprintf(stderr, "mtmamba plugin: %s\n", message);
        }
    } catch (...) {
        std::fprintf(stderr, "mtmamba plugin: %s\n", message);
    }
}

void logError(std::string const& message) noexcept { log(nvinfer1::ILogger::Severity::kERROR, message.c_str()); }

} // namespace mtmamba
